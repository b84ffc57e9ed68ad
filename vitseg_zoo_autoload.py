"""The hook of `import torch`: imports vitseg_zoo, which registers its models in timm and SMP; never raises.

An exception in a `torch.backends` hook makes `import torch` fail for the whole environment. So this module
lies beside the package and uses the standard library alone: it works where the package is damaged, or hidden
by another module of that name.

`VITSEG_ZOO_AUTOLOAD=0` switches it off.
"""

import os

_OFF = {"", "0", "false", "no", "off"}


def autoload() -> None:
    """Import vitseg_zoo, if it can be imported. Ctrl-C alone leaves this as an exception."""
    if os.environ.get("VITSEG_ZOO_AUTOLOAD", "1").strip().lower() in _OFF:
        return
    try:
        import importlib.util

        spec = importlib.util.find_spec("vitseg_zoo")
        if spec is not None and not spec.submodule_search_locations:  # not run: it may be anybody's script
            raise ImportError(f"{spec.origin} has its name")
        import vitseg_zoo  # noqa: F401
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _warn(
            f"vitseg_zoo cannot be imported ({type(error).__name__}: {error}), so its models are not in timm "
            "and segmentation_models_pytorch. Install it again, or remove it: pip uninstall vitseg-zoo"
        )


def _warn(message: str) -> None:
    import sys
    import warnings

    try:
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    except Exception:  # warnings are errors, or shown in a way that fails
        print(f"warning: {message}", file=sys.stderr)
