"""Put the zoo's encoders and architectures into timm and SMP.

The zoo is what two groups of entry points name; other packages join it by declaring entries in them:

* `vitseg_zoo.encoders`: a mapping in the form of `segmentation_models_pytorch.encoders.encoders`, from a
  name (`vz-` and the timm name) to `{"encoder": class, "params": {...}, "pretrained_settings": {...}}`.
  Importing its module registers the timm models of the same names with `timm.models.register_model`.
* `vitseg_zoo.architectures`: a subclass of `segmentation_models_pytorch.base.SegmentationModel`. It becomes
  `smp.<class name>`, and `smp.create_model` finds it under the class's name in lower case.

An entry that fails to load, or whose name is taken, is a warning, and the others are registered all the same.
No function of timm or SMP is changed, and no name that they own is replaced.

Every function here may be called again, and by several threads at once. No lock is held while something is
imported, as the threads that it waits for might wait for the lock: each thread loads what is missing, where
Python's own import locks apply, and adds it.
"""

import functools
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from types import ModuleType
from typing import Any

from vitseg_zoo._importing import fails_for_now, inside_import_of, warn

_ENCODERS = "vitseg_zoo.encoders"
_ARCHITECTURES = "vitseg_zoo.architectures"
_GROUP_TYPES = {_ENCODERS: Mapping, _ARCHITECTURES: type}

# What each entry point gave, so that it is loaded, and warned of, once; None where it failed.
_loaded: dict[EntryPoint, Any] = {}
# A timm model that came with each entry of encoders.
_in_timm: dict[EntryPoint, str] = {}
_registering = threading.local()  # .now: whether this thread does, by a use of SMP


def register_timm_models() -> None:
    """Register the zoo's models in timm: loading an encoder entry imports the module that does it."""
    load_encoders()


def register_smp_encoders() -> None:
    """Register encoders in SMP, whose module of them is imported."""
    from segmentation_models_pytorch.encoders import encoders

    tables = load_encoders()
    for table in tables:
        for name, settings in table.items():
            present = encoders.setdefault(name, settings)
            if present is settings:
                continue
            in_use = any(present is other.get(name) for other in tables)
            if not in_use and _is_former(present["encoder"], settings["encoder"]):
                encoders[name] = settings
            else:
                _warn_once(f"vitseg_zoo leaves out the SMP encoder {name!r}: the name is taken.")


def register_in_smp() -> None:
    """Register in SMP, now or as soon as it has made its own list of architectures."""
    smp = sys.modules["segmentation_models_pytorch"]
    if "create_model" in vars(smp):
        load_encoders(), load_architectures()
        waiting = _is_waiting()  # before what follows: what other threads load meanwhile is not lost
        register_smp_encoders()
        _register_smp_architectures(smp)
        if not waiting:
            if type(smp).__name__ == _AwaitingSMP.__name__:
                smp.__class__ = ModuleType  # given back last
            return
    # SMP is being imported, and fills its mapping of architectures after its last submodule; or the module
    # that imports it still has to define the models that it declares.
    smp.__class__ = _AwaitingSMP


def load_encoders() -> list[Mapping[str, dict[str, Any]]]:
    """Load the zoo's tables of SMP encoders, which puts the timm models of the same names into timm."""
    import timm  # noqa: F401  # before its submodules: else threads that begin at either end wait for each other
    from timm.models import is_model

    for entry, name in list(_in_timm.items()):
        if not is_model(name):  # timm was purged from `sys.modules` and imported anew
            sys.modules.pop(entry.module, None)
            _loaded.pop(entry, None)
            _in_timm.pop(entry, None)
    tables = _load_group(_ENCODERS)
    for entry in _declared(_ENCODERS):
        if entry not in _in_timm and (table := _loaded.get(entry)) is not None:
            name = next((_timm_name(key, settings) for key, settings in table.items()), "")
            if is_model(name):
                _in_timm[entry] = name
    return tables


def load_architectures() -> list[type]:
    """Load the zoo's classes of SMP architectures."""
    import segmentation_models_pytorch  # noqa: F401  # before its submodules, likewise

    return _load_group(_ARCHITECTURES)


def timm_name(encoder_name: str) -> str:
    """Give the timm model that one of the zoo's SMP encoders is made of; other names come back as they are.

    Example:
        >>> from vitseg_zoo.registry import timm_name
        >>> timm_name("vz-shuffle-vitseg_tiny_patch16_128")
        'vitseg_tiny_patch16_128'
    """
    for table in load_encoders():
        if encoder_name in table:
            return _timm_name(encoder_name, table[encoder_name])
    return encoder_name


def _timm_name(encoder_name: str, settings: Mapping[str, Any]) -> str:
    return settings["params"].get("name", encoder_name.removeprefix("vz-"))


def _load_group(group: str) -> list[Any]:
    """Load what the entry points of a group name; one that fails is left out with a warning.

    Those of a module that is just being imported, or need one that is, are left for the next call.
    """
    for entry in _declared(group):
        if entry in _loaded:
            continue
        try:
            if inside_import_of(entry.module):
                continue
            value = entry.load()
            _check(value, _GROUP_TYPES[group])
            _loaded[entry] = value
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if fails_for_now(error):
                continue
            _loaded[entry] = None
            _warn_once(
                f"vitseg_zoo leaves out {entry.name!r} ({entry.value}), which does not load "
                f"({type(error).__name__}: {error}); mend or uninstall the package that declares it."
            )
    return [value for entry in _declared(group) if (value := _loaded.get(entry)) is not None]


def _check(value: Any, expected: type) -> None:
    if not isinstance(value, expected):
        raise TypeError(f"expected a {expected.__name__}, got {value!r}")
    for name, settings in value.items() if isinstance(value, Mapping) else ():
        if missing := {"encoder", "params", "pretrained_settings"} - settings.keys():
            raise TypeError(f"{name!r} lacks {', '.join(sorted(missing))}")


@functools.cache  # each call reads the metadata of all that is installed
def _declared(group: str) -> EntryPoints:
    return entry_points(group=group)


def _is_waiting() -> bool:
    return any(entry not in _loaded for group in _GROUP_TYPES for entry in _declared(group))


def _register_smp_architectures(smp: ModuleType) -> None:
    for cls in load_architectures():
        places = ((vars(smp), cls.__name__), (smp.MODEL_ARCHITECTURES_MAPPING, cls.__name__.lower()))
        present = [names[name] for names, name in places if name in names]
        if not all(other is cls or _is_former(other, cls) for other in present):
            _warn_once(f"vitseg_zoo leaves out the SMP architecture {cls.__name__!r}: the name is taken.")
            continue
        for names, name in places:  # `smp.from_pretrained` looks classes up as attributes of the module
            names[name] = cls


def _is_former(present: type, cls: type) -> bool:
    """Say whether a class is what ours was before its module was purged and imported anew."""
    ours = not cls.__module__.startswith("segmentation_models_pytorch.")
    return ours and (present.__module__, present.__qualname__) == (cls.__module__, cls.__qualname__)


_warn_once = functools.cache(warn)


class _AwaitingSMP(ModuleType):
    """The class lent to SMP's module until it and our models are whole; each use of it tries again."""

    def __getattribute__(self, name: str) -> Any:
        get = functools.partial(ModuleType.__getattribute__, self)
        # Registering uses the module itself; other threads that use it meanwhile register, too.
        if "create_model" in get("__dict__") and not getattr(_registering, "now", False):
            _registering.now = True
            try:
                register_in_smp()
            except Exception as error:
                _warn_once(
                    f"vitseg_zoo could not register its architectures ({type(error).__name__}: {error})."
                )
            finally:
                _registering.now = False
        return get(name)
