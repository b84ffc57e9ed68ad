"""Segmenter as an SMP architecture."""

from collections.abc import Callable
from typing import Any

from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
from segmentation_models_pytorch.base.modules import Activation
from torch import nn

from vitseg_zoo.architectures.base import TokenModel, logit_refinement, token_encoder
from vitseg_zoo.decoders.segmenter import LinearDecoder, MaskTransformerDecoder

_DEFAULT_ENCODER = "vz-vit_small_patch16_384"


class Segmenter(TokenModel):
    """Segmenter (Strudel et al. 2021): a ViT whose patches are scored against learned class tokens.

    Paper: https://arxiv.org/abs/2105.05633. Images may have any size, and are normalized by the user with
    what `smp.encoders.get_preprocessing_params(encoder_name, encoder_weights)` gives.

    The model maps (B, in_channels, H, W) to logits (B, classes, H, W); with `aux_params` to a pair of
    them and of the whole image's logits (B, aux classes).

    Args:
        encoder_name: An encoder of the zoo, `vz-` and the name of the timm model; its last map is used. SMP's
            default, `"resnet34"`, means the paper's Seg-S, `vz-vit_small_patch16_384`.
        encoder_depth: Levels of an encoder that has levels (`vz-mit_b0`), 5 by default. A plain ViT has one,
            and another number is refused.
        encoder_weights: A tag of the timm model's weights, `"imagenet"` (its default tag) or `None` (random).
        decoder_head: `"mask"`, the mask transformer, or `"linear"`, one linear layer.
        decoder_depth: Transformer blocks of the mask transformer, 2 by default.
        decoder_num_heads: Its attention heads; by default each has 64 channels.
        in_channels: Channels of the image, 3 by default.
        classes: Number of output channels, 1 by default.
        activation: Applied to the logits: `"sigmoid"`, `"softmax"`, `"logsoftmax"`, `"tanh"`, `"identity"`, a
            callable or `None` (the default).
        aux_params: Parameters of an auxiliary classification head (`classes`, `pooling`, `dropout`,
            `activation`); none by default.
        encoder_blocks: How many of a plain ViT's transformer blocks are used; all of them by default.
        decoder_refinement: Correct the logits by what small convolutions see of the image at strides 4 and 2;
            off by default.
        kwargs: Passed to the timm model, for example `drop_path_rate` (0.1 in the paper).

    Raises:
        ValueError: If the encoder is not the zoo's, or an argument is out of range.
        KeyError: If there is no such encoder or no such weights.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> model = smp.create_model("segmenter", "vz-vit_tiny_patch16_224", encoder_weights=None, classes=5)
        >>> model(torch.rand(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    default_encoder = (_DEFAULT_ENCODER, "imagenet")

    @supports_config_loading
    def __init__(
        self,
        encoder_name: str = _DEFAULT_ENCODER,
        encoder_depth: int | None = None,
        encoder_weights: str | None = "imagenet",
        decoder_head: str = "mask",
        decoder_depth: int = 2,
        decoder_num_heads: int | None = None,
        in_channels: int = 3,
        classes: int = 1,
        activation: str | Callable[..., Any] | None = None,
        aux_params: dict[str, Any] | None = None,
        encoder_blocks: int | None = None,
        decoder_refinement: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        encoder_name, encoder_weights = self.choose_encoder(encoder_name, encoder_weights)
        if decoder_head not in ("linear", "mask"):
            raise ValueError(f"decoder_head should be 'mask' or 'linear', got {decoder_head!r}.")
        self.encoder = token_encoder(
            encoder_name,
            encoder_weights,
            in_channels,
            encoder_depth=encoder_depth,
            encoder_blocks=encoder_blocks,
            **kwargs,
        )
        channels, stride = self.encoder.out_channels[-1], self.encoder.output_stride
        if decoder_head == "mask":
            self.decoder = MaskTransformerDecoder(channels, classes, decoder_depth, decoder_num_heads)
        else:
            self.decoder = LinearDecoder(channels, classes)
        self.segmentation_head = nn.Sequential(
            nn.Upsample(scale_factor=stride, mode="bilinear", align_corners=False), Activation(activation)
        )
        refinement = logit_refinement(in_channels, classes) if decoder_refinement else None
        self.finish(encoder_name, channels, aux_params, refinement)
