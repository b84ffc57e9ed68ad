"""Registers the zoo in timm and SMP as they are imported, from the entry point that `import torch` loads.

Nothing of torch, timm or SMP is imported here: a finder on `sys.meta_path` waits until `timm.models` and
`segmentation_models_pytorch.encoders` are imported by the user, and lets `vitseg_zoo.registry` add the zoo's
models right behind. Standard library only, and it never raises: an exception in a `torch.backends` hook would
make `import torch` fail for the whole environment.

`VITSEG_ZOO_AUTOLOAD=0` switches automatic registration off; `import vitseg_zoo` still registers.
"""

import importlib.util
import os
import sys
from types import ModuleType

# Module that has to be imported -> function of vitseg_zoo.registry to call right after.
_HOOKS = {
    "timm.models": "register_timm_models",
    "segmentation_models_pytorch.encoders": "register_in_smp",
}


class _RegisteringFinder:
    """Finds the awaited modules as everybody else would, and runs the hook once they are executed."""

    def __init__(self) -> None:
        self.awaited = dict(_HOOKS)
        self._searching = False

    def find_spec(self, name: str, path=None, target: ModuleType | None = None):
        if self._searching or name not in self.awaited:
            return None
        self._searching = True  # the search below asks this finder too
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            del spec.loader.exec_module  # the class's own method again
            execute(module)
            self.settle(name)

        spec.loader.exec_module = execute_and_register
        return spec

    def settle(self, name: str) -> None:
        """Calls the hook of an imported module; the finder goes when nothing is left to await."""
        hook = self.awaited.pop(name, None)
        if not self.awaited and self in sys.meta_path:
            sys.meta_path.remove(self)
        if hook is not None:
            _call_registry(hook)


def _call_registry(hook: str) -> None:
    try:
        from vitseg_zoo import registry

        getattr(registry, hook)()
    except Exception as error:
        warn(f"vitseg_zoo could not register its models ({type(error).__name__}: {error}).")


def warn(message: str) -> None:
    """Warns without ever raising, even where warnings are turned into errors."""
    import warnings

    try:
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    except Warning:
        print(f"warning: {message}", file=sys.stderr)


def install() -> None:
    """Registers in what is imported already, and waits for what is not. Any number of times, in any order."""
    if _installed_finder() is not None:
        return
    finder = _RegisteringFinder()
    sys.meta_path.insert(0, finder)
    for name in _HOOKS:
        if name in sys.modules:
            finder.settle(name)


def autoload() -> None:
    """The `torch.backends` entry point, called at the end of `import torch`."""
    if _is_enabled():
        install()
    elif _installed_finder() is None:
        # Forget the package, so that a later `import vitseg_zoo` runs again and registers.
        sys.modules.pop("vitseg_zoo", None)


def on_package_import() -> None:
    """Registers at `import vitseg_zoo`, unless it is torch's switched-off hook that imports the package."""
    if _is_enabled() or not inside_import_of("torch"):
        install()


def _installed_finder() -> _RegisteringFinder | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, _RegisteringFinder)), None)


def _is_enabled() -> bool:
    return os.environ.get("VITSEG_ZOO_AUTOLOAD", "1") != "0"


def inside_import_of(name: str) -> bool:
    """Whether the module is being imported right now."""
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)
