"""Fine-tuning as ViTs need it: learning rates by depth, no weight decay where it harms, frozen blocks.

Layer-wise decay is that of "BEiT: BERT Pre-Training of Image Transformers", https://arxiv.org/abs/2106.08254,
through timm's own grouping. `drop_path_rate` is an argument of the models, or of `model.encoder.configure`;
gradient checkpointing is `model.encoder.set_grad_checkpointing`.
"""

from collections.abc import Callable
from typing import Any

from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.05,
    layer_decay: float = 0.75,
) -> list[dict[str, Any]]:
    """Group parameters for an optimizer: decoder and heads at the full learning rate, earlier layers at less.

    The last block's learning rate is `layer_decay` times that of decoder and heads, and so on down to the
    patch embedding's. Norms, biases, class and other learned tokens, and position embeddings have no weight
    decay. Frozen parameters are left out.

    Args:
        model: A segmentation model whose `encoder.model` is a timm model: the zoo's, and SMP's with `vz-`
            encoders. Any model, where `layer_decay` is 1.
        learning_rate: Of decoder and heads.
        weight_decay: Of all other parameters.
        layer_decay: Ratio of the learning rates of successive blocks; 1 for the same everywhere.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, for schedulers of PyTorch and of timm.

    Raises:
        ValueError: If `layer_decay` is not 1 and the encoder is not built on a timm model that says how its
            layers follow each other.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> model = smp.create_model("fpn", "vz-vit_tiny_patch16_224", encoder_weights=None)
        >>> optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-3))
        >>> f"{min(group['lr'] for group in optimizer.param_groups):.1e}"
        '2.4e-05'
    """
    kept = _no_weight_decay(model)
    if layer_decay == 1:  # then layers need not be known: a CNN's encoder will do
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=kept)
        return [{**group, "lr": learning_rate} for group in groups]
    groups = param_groups_layer_decay(
        _Layered(model), weight_decay, no_weight_decay_list=kept, layer_decay=layer_decay
    )
    # timm's schedulers would scale by this key again what is scaled already.
    scales = [group.pop("lr_scale") for group in groups]
    return [{**group, "lr": learning_rate * scale} for group, scale in zip(groups, scales, strict=True)]


def freeze_blocks(model: nn.Module, blocks: int | None = None) -> None:
    """Freeze the patch embedding and the first blocks of a model's encoder, running statistics included.

    Args:
        model: A segmentation model whose `encoder.model` is a timm model.
        blocks: How many blocks; `None` freezes the whole timm model, as for a linear probe.

    Raises:
        ValueError: If the encoder has fewer blocks, or is not built on such a timm model.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> model = smp.create_model("vitseg", encoder_name="vz-vit_tiny_patch16_224", encoder_weights=None)
        >>> freeze_blocks(model)
        >>> {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
        {'segmentation_head'}
    """
    layers = _layers(_timm_model(model))
    available = max(layers.values())
    if blocks is not None and not 0 <= blocks <= available:
        raise ValueError(f"blocks should lie in [0, {available}], those of the encoder, got {blocks}.")
    for name, parameter in _timm_model(model).named_parameters():
        if blocks is None or layers[name] <= blocks:
            parameter.requires_grad = False
    # A frozen batch norm, as that of `vitseg_*`, keeps its statistics from now on.
    model.encoder.train(model.encoder.training)


class _Layered:
    """A segmentation model as timm's grouping functions see one: named parameters in ordered layers."""

    def __init__(self, model: nn.Module) -> None:
        self.named_parameters = model.named_parameters
        self._layers = {f"encoder.model.{name}": layer for name, layer in _layers(_timm_model(model)).items()}

    def group_matcher(self, coarse: bool) -> Callable[[str], int]:
        behind = max(self._layers.values()) + 1
        return lambda name: self._layers.get(name, behind)


def _layers(timm_model: nn.Module) -> dict[str, int]:
    """Return each parameter's layer: 0 is the embedding, i the i-th block, the last with the last norm."""
    return group_parameters(timm_model, timm_model.group_matcher(coarse=False), reverse=True)


def _timm_model(model: nn.Module) -> nn.Module:
    timm_model = getattr(getattr(model, "encoder", None), "model", None)
    if not hasattr(timm_model, "group_matcher"):
        raise ValueError(
            f"{type(model).__name__} has no timm model with known layers as `encoder.model`: "
            "use it with an encoder of the zoo, `vz-` and the name of a timm model."
        )
    return timm_model


def _no_weight_decay(model: nn.Module) -> set[str]:
    """Name the parameters that parts of a model, in timm's form, keep from weight decay, and tables."""
    named = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }
    # Tables of relative positions, which timm's SAM and relative-position ViTs leave out.
    tables = ("rel_pos_h", "rel_pos_w", "relative_position_bias_table")
    return named | {name for name, _ in model.named_parameters() if name.endswith(tables)}
