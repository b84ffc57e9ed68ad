"""What the architectures whose heads read a ViT's tokens have in common."""

from typing import Any, ClassVar

import torch
from segmentation_models_pytorch.base import ClassificationHead, SegmentationModel
from segmentation_models_pytorch.base.initialization import initialize_head

from vitseg_zoo.architectures.hub import ModelCardMixin
from vitseg_zoo.ops.not_scriptable import NotScriptable


class TokenModel(NotScriptable, ModelCardMixin, SegmentationModel):
    """An encoder with one map of tokens, a decoder and a head, for images of any size.

    A subclass sets `encoder`, `decoder` and `segmentation_head`, and ends its `__init__` with `finish`.
    """

    _is_torch_scriptable = False
    requires_divisible_input_shape = False

    # What stands for SMP's own default, "resnet34" with the weights "imagenet": these models are no CNNs, and
    # `smp.create_model` passes each of the two where nothing is chosen.
    default_encoder: ClassVar[tuple[str, str | None]]

    def choose_encoder(self, name: str, weights: str | None) -> tuple[str, str | None]:
        """Gives the encoder and the weights that two arguments stand for, and notes them for saved files."""
        if name == "resnet34" and weights in ("imagenet", None):
            name, default_weights = self.default_encoder
            weights = weights and default_weights
            self.config.update(encoder_name=name, encoder_weights=weights)
        return name, weights

    def finish(self, encoder_name: str, channels: int, aux_params: dict[str, Any] | None) -> None:
        """Adds what all have: the classification head over `channels`, if any, the name and the start."""
        self.classification_head = None if aux_params is None else ClassificationHead(channels, **aux_params)
        self.name = f"{type(self).__name__.lower()}-{encoder_name}"
        self.initialize()

    def initialize(self) -> None:
        """Initializes the classification head as SMP does; the rest has initialized itself."""
        if self.classification_head is not None:
            initialize_head(self.classification_head)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Maps images (B, in_channels, H, W) to logits (B, classes, H, W), with a second head to a pair."""
        height, width = x.shape[2:]
        features = self.encoder(x)
        masks = self.segmentation_head(self.decoder(features))[..., :height, :width]
        if self.classification_head is not None:
            return masks, self.classification_head(features[-1])
        return masks
