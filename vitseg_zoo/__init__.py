"""Transformer segmentation for timm and segmentation_models_pytorch (SMP).

Installing the package is enough: `smp.create_model("vitseg")` and `timm.create_model("mit_b0")` work
without importing it. `import vitseg_zoo` registers explicitly (where automatic loading is switched off),
costs no import of torch, and gives access to what is listed in `__all__`, loaded at first use.

Example:
    >>> import vitseg_zoo
    >>> vitseg_zoo.list_models("vit*", kind="architecture")
    ['vitseg']
"""

__version__ = "0.2.0"

# Public name -> module that defines it; imported when the name is first asked for.
_PUBLIC = {
    "Predictor": "vitseg_zoo.inference.predictor",
    "accelerate": "vitseg_zoo.acceleration",
    "create_model": "vitseg_zoo.models",
    "load_model": "vitseg_zoo.weights.loading",
    "load_weights": "vitseg_zoo.weights.loading",
    "push_to_hub": "vitseg_zoo.weights.saving",
    "save_model": "vitseg_zoo.weights.saving",
    "save_pretrained": "vitseg_zoo.weights.saving",
    "QueryLoss": "vitseg_zoo.losses",
    "freeze_blocks": "vitseg_zoo.training.parameter_groups",
    "parameter_groups": "vitseg_zoo.training.parameter_groups",
    "list_models": "vitseg_zoo.models",
    "predict_labels": "vitseg_zoo.inference.predict_labels",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


from vitseg_zoo import _autoload  # noqa: E402

_autoload.install()
