"""What the zoo's SMP encoders have in common: a timm model inside, which can be rebuilt with its weights."""

import copyreg
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from vitseg_zoo.encoders.pretrained import adapt_in_channels, timm_filter
from vitseg_zoo.ops.not_scriptable import NotScriptable


class _WithRun(NotScriptable):
    """Lets the call of a timm model, which its hooks see, run something else than its own forward pass."""

    def forward(
        self,
        x: torch.Tensor,
        *args: Any,
        run: Callable[[nn.Module, torch.Tensor], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Give `run(model, x)`, or what the timm model gives where there is no `run`."""
        return super().forward(x, *args, **kwargs) if run is None else run(self, x)  # type: ignore[misc]


@functools.cache
def _with_run(timm_class: type) -> Any:
    """Make a subclass of a timm model's class, of the same name, whose call takes `run`."""
    names = {name: getattr(timm_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    cls = type(timm_class.__name__, (_WithRun, timm_class), names)
    # The name is that of another class: copies and pickles are made by `_new`.
    copyreg.pickle(cls, lambda model: (_new, (timm_class,), *model.__reduce_ex__(2)[2:]))
    return cls


def _new(timm_class: type) -> nn.Module:
    cls = _with_run(timm_class)
    return cls.__new__(cls)


class TimmEncoder(NotScriptable, nn.Module):
    """An encoder that keeps a timm model as `model`; a subclass builds it in `_build` and takes it in `_use`.

    The model's class becomes a subclass, of the same name, whose call takes a function `run` that is called
    with the model and the image: hooks on `model`, and what else acts by them, as FSDP does, see the call.

    Its attribute `configured` has the arguments of the timm model that were given beside the encoder's name,
    for files that describe the encoder.
    """

    _is_torch_scriptable = False
    _is_torch_exportable = True
    _is_torch_compilable = True

    model: nn.Module

    def __init__(self, in_channels: int, pretrained: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self._kwargs = kwargs
        self.configured: dict[str, Any] = {}
        self._use(self._build(in_channels, pretrained=pretrained, **kwargs), in_channels)

    def _build(self, in_channels: int, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        """Build the timm model, and change nothing of the encoder."""
        raise NotImplementedError

    def _use(self, model: nn.Module, in_channels: int) -> None:
        """Take a model of `_build`."""
        model.__class__ = _with_run(model.__class__)
        self.model = model
        self._in_channels = in_channels

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Make the encoder take `in_channels` image channels; `pretrained` keeps and adapts its weights."""
        if in_channels != self._in_channels:
            self._rebuild(in_channels, self._kwargs, keep_weights=pretrained)

    def configure(self, **kwargs: Any) -> None:
        """Rebuild the timm model with further arguments; weights, and which are frozen, stay.

        SMP's architectures have no way of passing arguments on to such an encoder, so this is theirs. To be
        called before the optimizer is made. `vitseg_zoo.save_model` notes the arguments in its file.

        Args:
            kwargs: Arguments of `timm.create_model`: `drop_path_rate`, for ViTs `img_size` and
                `pos_drop_rate`, for MiT `norm_layer`, and so on.

        Raises:
            TypeError: If the timm model has no such argument.
            RuntimeError: If the weights do not fit the model that the arguments make.

        Example:
            >>> import segmentation_models_pytorch as smp
            >>> model = smp.Unet("vz-vitseg_tiny_patch16_128", encoder_weights=None)
            >>> model.encoder.configure(drop_path_rate=0.1)
        """
        changed = {**self._kwargs, **kwargs}
        self._rebuild(self._in_channels, changed)
        self._kwargs = changed
        self.configured = {**self.configured, **kwargs}

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode; norms with frozen parameters keep their running statistics, as in SMP."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _NormBase) and module.affine and not module.weight.requires_grad:
                module.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save memory in training by computing each block again in the backward pass."""
        self.model.set_grad_checkpointing(enable)

    def _rebuild(self, in_channels: int, kwargs: Mapping[str, Any], keep_weights: bool = True) -> None:
        """Put another timm model into the state of the one before, and then into its place."""
        old, model = self.model, self._build(in_channels, **kwargs)
        parameter = next(old.parameters())
        model.to(parameter.device, parameter.dtype)
        if keep_weights:
            weights = timm_filter(model)(old.state_dict(), model)
            model.load_state_dict(adapt_in_channels(weights, model))
        frozen = {name for name, value in old.named_parameters() if not value.requires_grad}
        for name, value in model.named_parameters():
            if name in frozen:
                value.requires_grad = False
        training = {name: module.training for name, module in old.named_modules()}
        for name, module in model.named_modules():
            module.training = training.get(name, old.training)
        if any(getattr(module, "grad_checkpointing", False) for module in old.modules()):
            model.set_grad_checkpointing()
        self._use(model, in_channels)
