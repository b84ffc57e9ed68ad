"""What registration knows of Python's imports. Standard library only."""

import sys
import warnings
from types import FrameType


def warn(message: str) -> None:
    """Warn without ever raising, even where warnings are turned into errors."""
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    except Exception:  # warnings are errors, or shown in a way that fails
        print(f"warning: {message}", file=sys.stderr)


def inside_import_of(name: str) -> bool:
    """Say whether this thread is just importing the module; what other threads import does not count."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == name:
            return True
        frame = frame.f_back
    return False


def fails_for_now(error: BaseException) -> bool:
    """Say whether an import failed as another thread is importing what it needs, or SMP is not whole yet.

    Both are followed by another try. Where threads would else wait for each other forever, Python raises, or
    hands out a half imported module.
    """
    if type(error).__name__ == "_DeadlockError":
        return True
    module = (error.name or "") if isinstance(error, ImportError) else ""
    if isinstance(error, AttributeError):
        module = getattr(error.obj, "__name__", "")
    if not getattr(getattr(sys.modules.get(module), "__spec__", None), "_initializing", False):
        return False
    return module.startswith("segmentation_models_pytorch") or not inside_import_of(module)
