"""SegFormer as an SMP architecture, with the fused head."""

from collections.abc import Callable
from typing import Any

import torch
from segmentation_models_pytorch.base import ClassificationHead, SegmentationHead
from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
from torch import Tensor, nn

from vitseg_zoo.architectures.base import configured_encoder
from vitseg_zoo.architectures.hub import HubModel
from vitseg_zoo.decoders.segformer import FusedSegformerDecoder
from vitseg_zoo.encoders.hierarchical import HierarchicalEncoder
from vitseg_zoo.ops.bilinear import upsample
from vitseg_zoo.ops.dispatch import may_bypass
from vitseg_zoo.ops.not_scriptable import NotScriptable
from vitseg_zoo.ops.segformer_head import is_pixelwise


class FusedSegformer(NotScriptable, HubModel):
    """SegFormer (Xie et al. 2021): the outputs of `smp.Segformer`, several times faster.

    Paper: https://arxiv.org/abs/2105.15203. Arguments and state dict are those of `smp.Segformer` with the
    same encoder, and two arguments come behind them. Over the zoo's `vz-mit_b*` the head has the paper's four
    levels, and state dicts of `smp.Segformer` with `mit_b*` load as they are.

    The model maps (B, in_channels, H, W), H and W divisible by 32, to logits (B, classes, H, W); with
    `aux_params` to a pair of them and of the whole image's logits (B, aux classes).

    Args:
        encoder_name: Any SMP encoder; `vz-mit_b0` to `vz-mit_b5` are the paper's.
        encoder_depth: Number of the encoder's levels, 3 to 5, 5 by default.
        encoder_weights: Pretrained weights of the encoder, `"imagenet"` by default, or `None` (random).
        decoder_segmentation_channels: Channels of the head, 256 by default (the paper's B0 and B1; B2 to B5
            have 768).
        in_channels: Channels of the image, 3 by default.
        classes: Number of output channels, 1 by default.
        activation: Applied to the logits: `"sigmoid"`, `"softmax"`, `"logsoftmax"`, `"tanh"`, `"identity"`,
            a callable or `None` (the default).
        upsampling: Factor from the head's quarter resolution to the output, 4 by default.
        aux_params: Parameters of an auxiliary classification head (`classes`, `pooling`, `dropout`,
            `activation`); none by default.
        decoder_dropout: Dropout of channels before the classifier, 0.1 in the paper; 0 by default, as in SMP.
        align_corners: How the logits are upsampled: True by default, as in SMP; False as in Hugging Face and
            in NVIDIA's evaluation.
        kwargs: Passed to the timm model of an encoder of the zoo, for example `drop_path_rate`; to others as
            `smp.Segformer` does.

    Raises:
        KeyError: If there is no such encoder or no such weights.
        ValueError: If `encoder_depth` is out of range.
        TypeError: If the timm model of an encoder of the zoo has no such argument as one of `kwargs`.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> model = smp.create_model("fusedsegformer", "vz-mit_b0", encoder_weights=None, classes=19)
        >>> model(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 19, 64, 96])
    """

    _is_torch_scriptable = False

    @supports_config_loading
    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_depth: int = 5,
        encoder_weights: str | None = "imagenet",
        decoder_segmentation_channels: int = 256,
        in_channels: int = 3,
        classes: int = 1,
        activation: str | Callable[..., Any] | None = None,
        upsampling: int = 4,
        aux_params: dict[str, Any] | None = None,
        decoder_dropout: float = 0.0,
        align_corners: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.encoder = configured_encoder(encoder_name, in_channels, encoder_depth, encoder_weights, **kwargs)
        if isinstance(self.encoder, HierarchicalEncoder):
            self.encoder.unfolds_image = False  # the paper's head has no level at stride 2
        self.decoder = FusedSegformerDecoder(
            self.encoder.out_channels, encoder_depth, decoder_segmentation_channels, decoder_dropout
        )
        self.segmentation_head = SegmentationHead(
            decoder_segmentation_channels,
            classes,
            kernel_size=1,
            activation=activation,
            upsampling=upsampling,
        )
        if isinstance(self.segmentation_head[1], nn.Upsample):
            self.segmentation_head[1] = nn.Upsample(
                scale_factor=upsampling, mode="bilinear", align_corners=align_corners
            )
        self.classification_head = (
            None if aux_params is None else ClassificationHead(self.encoder.out_channels[-1], **aux_params)
        )
        self.name = f"fusedsegformer-{encoder_name}"
        self.initialize()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map images (B, in_channels, H, W) to logits (B, classes, H, W)."""
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            self.check_input_shape(x)
        features = self.encoder(x)
        if _classifies_pixels(self.segmentation_head, self.decoder):
            classifier, *upsampling = self.segmentation_head
            # The decoder calls the classifier, so that its map of many channels need not be held whole.
            masks = self.decoder(features, classifier)
            if torch.is_grad_enabled() and not torch.jit.is_tracing():
                masks = masks.contiguous()  # losses would copy the large logits into this order
            for layer in upsampling:
                masks = upsample(layer, masks)
        else:
            masks = self.segmentation_head(self.decoder(features))
        if self.classification_head is not None:
            return masks, self.classification_head(features[-1])
        return masks


def _classifies_pixels(head: nn.Module, decoder: nn.Module) -> bool:
    """Tell whether the decoder may call the first layer of a head: SMP's, with a linear layer in front."""
    return (
        may_bypass((head, SegmentationHead), (decoder, type(decoder)))
        and is_pixelwise(head[0])
        and may_bypass((head[0], nn.Conv2d))
    )
