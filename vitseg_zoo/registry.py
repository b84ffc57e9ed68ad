"""Puts the zoo's encoders and architectures into timm and SMP, once, and lists them.

The zoo is what two groups of entry points name; other packages join it by declaring entries in them:

* `vitseg_zoo.encoders`: a mapping in the form of `segmentation_models_pytorch.encoders.encoders`, from a
  name (`vz-` and the timm name) to `{"encoder": class, "params": {...}, "pretrained_settings": {...}}`.
  Importing its module registers the timm models of the same names with `timm.models.register_model`.
* `vitseg_zoo.architectures`: a subclass of `segmentation_models_pytorch.base.SegmentationModel`. It becomes
  `smp.<class name>`, and `smp.create_model` finds it under the class's name in lower case.

An entry that fails to load, or whose name is taken, is a warning, and the others are registered all the same.
No function of timm or SMP is changed, and no name that they own is replaced.
"""

import fnmatch
import functools
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from types import ModuleType
from typing import Any, Literal

from vitseg_zoo import _autoload
from vitseg_zoo._autoload import warn

ENCODER_GROUP = "vitseg_zoo.encoders"
ARCHITECTURE_GROUP = "vitseg_zoo.architectures"
_GROUP_TYPES = {ENCODER_GROUP: Mapping, ARCHITECTURE_GROUP: type}

# What each entry point gave, so that it is loaded, and warned of, once; None where it failed.
_loaded: dict[EntryPoint, Any] = {}


def register_timm_models() -> None:
    """Registers the zoo's models in timm: loading an encoder entry imports the module that does it."""
    if not _autoload.inside_import_of("segmentation_models_pytorch.encoders"):
        _load_group(ENCODER_GROUP)
    # Otherwise SMP is importing timm, and entries may use SMP's encoders: `register_in_smp` follows.


def register_in_smp() -> None:
    """Registers encoders in SMP now, and architectures as soon as SMP has made its own list of them."""
    smp = sys.modules["segmentation_models_pytorch"]
    _register_smp_encoders()
    if "create_model" in vars(smp):
        _register_smp_architectures(smp)
        if not _is_waiting():
            return
    # SMP is being imported, and fills its mapping of architectures after its last submodule; or the module
    # that imports it still has to define the models that it declares.
    smp.__class__ = _AwaitingSMP


def list_models(
    filter: str | Sequence[str] = "",
    kind: Literal["encoder", "architecture", "model"] | None = None,
) -> list[str]:
    """Lists what the zoo has, sorted by name.

    Args:
        filter: Wildcard or wildcards that a name has to match, as in `timm.list_models`; all by default.
        kind: `"encoder"` for SMP encoders (`vz-` and the name of the timm model), `"architecture"` for names
            that `smp.create_model` takes, `"model"` for complete models with weights, names that
            `vitseg_zoo.create_model` takes; all by default.

    Returns:
        The names.

    Raises:
        ValueError: If there is no such kind.

    Example:
        >>> import vitseg_zoo
        >>> vitseg_zoo.list_models("vz-vitseg_tiny*")
        ['vz-vitseg_tiny_patch16_128', 'vz-vitseg_tiny_patch8_128']
    """
    from vitseg_zoo.weights.catalog import list_entries

    listings = {
        "encoder": lambda: [name for mapping in _load_group(ENCODER_GROUP) for name in mapping],
        "architecture": lambda: [cls.__name__.lower() for cls in _load_group(ARCHITECTURE_GROUP)],
        "model": lambda: [entry.name for entry in list_entries(kind="model")],
    }
    if kind is not None and kind not in listings:
        raise ValueError(f"Unknown kind {kind!r} of model, choose one of {list(listings)}.")
    names = [name for key, listing in listings.items() if kind in (None, key) for name in listing()]
    patterns = [filter] if isinstance(filter, str) else filter
    return sorted(
        name for name in names if any(fnmatch.fnmatch(name, pattern or "*") for pattern in patterns)
    )


def timm_name(encoder_name: str) -> str:
    """Gives the timm model that one of the zoo's SMP encoders is made of; other names come back as they are.

    Example:
        >>> from vitseg_zoo.registry import timm_name
        >>> timm_name("vz-shuffle-vitseg_tiny_patch16_128")
        'vitseg_tiny_patch16_128'
    """
    for mapping in _load_group(ENCODER_GROUP):
        if encoder_name in mapping:
            return mapping[encoder_name]["params"].get("name", encoder_name.removeprefix("vz-"))
    return encoder_name


def _load_group(group: str) -> list[Any]:
    """Loads what the entry points of a group name; one that fails is left out with a warning.

    Those of a module that is just being imported are left for the next call.
    """
    for entry in _declared(group):
        if entry in _loaded or _autoload.inside_import_of(entry.module):
            continue
        try:
            value = entry.load()
            if not isinstance(value, _GROUP_TYPES[group]):
                raise TypeError(f"expected a {_GROUP_TYPES[group].__name__}, got {value!r}")
            _loaded[entry] = value
        except (Exception, SystemExit) as error:
            _loaded[entry] = None
            warn(
                f"vitseg_zoo leaves out {entry.name!r} ({entry.value}), which does not load "
                f"({type(error).__name__}: {error}); mend or uninstall the package that declares it."
            )
    return [value for entry, value in _loaded.items() if entry.group == group and value is not None]


@functools.cache  # each call reads the metadata of all that is installed
def _declared(group: str) -> EntryPoints:
    return entry_points(group=group)


def _is_waiting() -> bool:
    return any(entry not in _loaded for group in _GROUP_TYPES for entry in _declared(group))


def _register_smp_encoders() -> None:
    from segmentation_models_pytorch.encoders import encoders

    for mapping in _load_group(ENCODER_GROUP):
        for name, settings in mapping.items():
            if encoders.setdefault(name, settings) is not settings:
                _warn_once(f"vitseg_zoo leaves out the SMP encoder {name!r}: the name is taken.")


def _register_smp_architectures(smp: ModuleType) -> None:
    for cls in _load_group(ARCHITECTURE_GROUP):
        name = cls.__name__
        if vars(smp).get(name, cls) is not cls:
            _warn_once(f"vitseg_zoo leaves out the SMP architecture {name!r}: the name is taken.")
        else:
            # `smp.from_pretrained` looks classes up as attributes of the module.
            setattr(smp, name, cls)
            smp.MODEL_ARCHITECTURES_MAPPING.setdefault(name.lower(), cls)


_warn_once = functools.cache(warn)


class _AwaitingSMP(ModuleType):
    """The class lent to SMP's module until it and our models are whole; each use of it tries again."""

    def __getattribute__(self, name: str) -> Any:
        if "create_model" in ModuleType.__getattribute__(self, "__dict__"):
            self.__class__ = ModuleType  # given back first: registering uses the module itself
            try:
                register_in_smp()
            except Exception as error:
                warn(f"vitseg_zoo could not register its architectures ({type(error).__name__}: {error}).")
        return ModuleType.__getattribute__(self, name)
