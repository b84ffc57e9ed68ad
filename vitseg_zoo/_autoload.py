"""Register the zoo in timm and SMP as they are imported, whenever and by whomever that is.

Nothing of torch, timm or SMP is imported here: a finder on `sys.meta_path` finds `timm.models` and SMP as
everybody else would, and lets `vitseg_zoo.registry` add the zoo's models right behind their import. It stays,
as they may be reloaded, or purged from `sys.modules` and imported anew. Standard library only, and it never
raises.
"""

import importlib
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from vitseg_zoo._importing import fails_for_now, warn

# Module that has to be imported -> function of vitseg_zoo.registry to call right after.
_HOOKS = {
    "timm.models": "register_timm_models",
    "segmentation_models_pytorch.encoders": "register_smp_encoders",
    "segmentation_models_pytorch": "register_in_smp",
}
_installing = threading.Lock()


class _RegisteringFinder:
    """Find the awaited modules as the other finders do, and puts the hook behind their loaders."""

    def __init__(self) -> None:
        # (thread, module) of the searches under way: other finders may ask all finders, too.
        self._searches: set[tuple[int, str]] = set()

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        search = (threading.get_ident(), name)
        if name not in _HOOKS or search in self._searches:
            return None
        self._searches.add(search)
        try:
            spec = self._ask_others(name, path, target)
        finally:
            self._searches.discard(search)
        if spec is not None and spec.loader is not None:
            loader: Any = _RegisteringLoader(spec.loader, _HOOKS[name])
            spec.loader = loader
        return spec

    def _ask_others(self, name: str, path: Any, target: ModuleType | None) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    return spec
        return None


class _RegisteringLoader:
    """Another loader, in all that it has, with a hook behind it; the module that it loads gets the other."""

    def __init__(self, loader: Any, hook: str) -> None:
        self._loader = loader
        # Importlib asks which of the two a loader has.
        if hasattr(loader, "exec_module"):
            self.exec_module = self._followed_by(hook, loader.exec_module)
        if hasattr(loader, "load_module"):
            self.load_module = self._followed_by(hook, loader.load_module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loader"], name)

    def _followed_by(self, hook: str, load: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def load_and_register(module: Any) -> Any:
            if isinstance(module, ModuleType):  # `load_module` takes a name
                spec: Any = module.__spec__
                module.__loader__ = spec.loader = self._loader
            loaded = load(module)
            _call_registry(hook)
            return loaded

        return load_and_register


def _call_registry(hook: str) -> None:
    try:
        getattr(importlib.import_module("vitseg_zoo.registry"), hook)()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if not fails_for_now(error):  # whose import is followed by a hook, too
            warn(f"vitseg_zoo could not register its models ({type(error).__name__}: {error}).")


def install() -> None:
    """Register in what is imported already, and in what will be. Any number of times, in any order."""
    with _installing:
        if not any(type(finder) is _RegisteringFinder for finder in sys.meta_path):
            # One of this module as it was before it was reloaded gives its place.
            others = [
                finder for finder in sys.meta_path if type(finder).__name__ != _RegisteringFinder.__name__
            ]
            sys.meta_path[:] = [_RegisteringFinder(), *others]
    if "timm.models" in sys.modules:
        _call_registry("register_timm_models")
    if "segmentation_models_pytorch" in sys.modules:
        _call_registry("register_in_smp")


def autoload() -> None:
    """Do what the entry point of 0.1 names: a checkout that was installed then calls it after a pull."""
    install()
