"""Make a SegFormer or PVTv2 that the user already has fast, in place, with the same weights and outputs."""

import logging
import warnings
from collections import Counter
from typing import TypeVar

from torch import nn

from vitseg_zoo.acceleration import smp_segformer, timm_pvt_v2

_logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model) -> Model:
    """Replace the slow parts of a trained SegFormer, MiT or PVTv2 in place, and log what it replaced.

    Found anywhere inside `model`: SMP's `mit_b*` encoders, the decoder of `smp.Segformer` over any encoder,
    Hugging Face's `SegformerModel` and what is built on it (transformers 5), and timm's PVTv2. Parameters,
    state dict, interface and outputs (1e-4 in fp32) stay; in memory the maps become channels-last, returned
    ones included. Training, autocast, hooks and adapters go on working. The parts' classes become subclasses
    that live here: unpickling a whole model needs this package, loading a state dict does not.

    A part that is no longer what its library made of it, now or later (another layer, a hook, an adapter, a
    quantized weight), runs its own code as before. The log, at the level INFO, says how many run fast, and
    which do not and why.

    Call it before `torch.compile`, not after.

    Args:
        model: Any module.

    Returns:
        `model` itself; unchanged, with a warning, when there is nothing to replace.

    Raises:
        ValueError: If the model holds mmsegmentation's SegFormer head, which is another function.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> model = accelerate(smp.Segformer("mit_b0", encoder_weights=None, classes=19))
    """
    modules = list(model.modules())
    for module in modules:
        if type(module).__name__ == "SegformerHead" and type(module).__module__.startswith("mmseg."):
            raise ValueError(
                "mmsegmentation's SegformerHead has a norm and a ReLU on every projection, so it cannot be "
                "fused: give accelerate() an SMP or Hugging Face SegFormer."
            )
    fast_classes = {
        **smp_segformer.FAST_CLASSES,
        **timm_pvt_v2.FAST_CLASSES,
        **_transformers_classes(modules),
    }
    replaced: Counter[str] = Counter()
    for module in modules:
        fast_class = fast_classes.get(type(module))
        if fast_class is not None:
            replaced[type(module).__name__] += 1
            module.__class__ = fast_class
    if replaced:
        _logger.info("replaced %s", ", ".join(f"{count} {name}" for name, count in replaced.items()))
        _log_what_is_fast(model)
    elif not any(type(module) in fast_classes.values() for module in modules):  # nor before
        warnings.warn(
            f"accelerate found nothing to replace in {type(model).__name__}: no MiT encoder or Segformer "
            "decoder of SMP, no SegFormer of transformers 5, no PVTv2 of timm.",
            stacklevel=2,
        )
    return model


def _log_what_is_fast(model: nn.Module) -> None:
    reasons = {
        name or type(model).__name__: module.why_plain()
        for name, module in model.named_modules()
        if hasattr(module, "why_plain")
    }
    _logger.info("%d of %d parts run fast", list(reasons.values()).count(None), len(reasons))
    for name, reason in reasons.items():
        if reason is not None:
            _logger.info("%s runs as before: %s", name, reason)


def _transformers_classes(modules: list[nn.Module]) -> dict[type, type]:
    """Return the classes of transformers, which is not imported unless the model comes from it."""
    if not any(type(module).__module__.startswith("transformers.models.segformer.") for module in modules):
        return {}
    try:
        from vitseg_zoo.acceleration.transformers_segformer import FAST_CLASSES
    except ImportError:  # transformers 4 has other classes
        return {}
    return FAST_CLASSES
