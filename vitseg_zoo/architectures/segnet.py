"""SegNet, the CNN of the article series, as SMP architectures."""

from collections.abc import Callable
from typing import Any, ClassVar

from segmentation_models_pytorch.base import ClassificationHead
from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.base.modules import Activation
from torch import nn

from vitseg_zoo.architectures.hub import HubModel
from vitseg_zoo.decoders.segnet import CHANNELS, SegNetDecoder, SegNetEncoder, conv_norm


class SegNet(HubModel):
    """SegNet (Badrinarayanan et al. 2015): a CNN that unpools where it has pooled.

    Paper: https://arxiv.org/abs/1511.00561. In the form of the article series "Efficient Image Segmentation
    Using PyTorch", with 15,274,892 parameters for three classes; it is trained from scratch. Images hold
    values in [0, 1] and need no normalization: the first layer is a batch norm. Height and width are
    multiples of 16.

    The model maps (B, in_channels, H, W) to logits (B, classes, H, W); with `aux_params` to a pair of
    them and of the whole image's logits (B, aux classes).

    Args:
        encoder_name: There for `smp.create_model`, which always passes one: SegNet has an encoder of its own,
            and its own name or SMP's default, `"resnet34"`, mean that one.
        encoder_weights: `None`: there are none. SMP's default, `"imagenet"` with `"resnet34"`, is read so.
        in_channels: Channels of the image, 3 by default.
        classes: Number of output channels, 3 by default.
        activation: Applied to the logits: `"sigmoid"`, `"softmax"`, `"logsoftmax"`, `"tanh"`, `"identity"`, a
            callable or `None` (the default). `torch.nn.ReLU` is what a SegNet computes that has a ReLU behind
            its last convolution, too.
        aux_params: Parameters of an auxiliary classification head (`classes`, `pooling`, `dropout`,
            `activation`); none by default.

    Raises:
        ValueError: If another encoder or weights are asked for.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> model = smp.create_model("segnet", classes=3)
        >>> model(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 3, 64, 96])
        >>> sum(p.numel() for p in model.parameters())
        15274892
    """

    separable: ClassVar[bool] = False

    @supports_config_loading
    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_weights: str | None = None,
        in_channels: int = 3,
        classes: int = 3,
        activation: str | Callable[..., Any] | None = None,
        aux_params: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = type(self).__name__.lower()
        if encoder_name not in ("resnet34", self.name):
            raise ValueError(
                f"{self.name} has an encoder of its own, got encoder_name={encoder_name!r}: give "
                f"{self.name!r}, or nothing."
            )
        if encoder_weights not in (None, "imagenet") or (encoder_weights and encoder_name == self.name):
            raise ValueError(
                f"There are no pretrained weights for {self.name}, got encoder_weights={encoder_weights!r}: "
                "pass None."
            )
        self.config.update(encoder_name=self.name, encoder_weights=None)
        self.encoder = SegNetEncoder(in_channels, self.separable)
        self.decoder = SegNetDecoder(self.separable)
        self.segmentation_head = nn.Sequential(
            *conv_norm(CHANNELS[0], classes, self.separable), Activation(activation)
        )
        self.classification_head = (
            None if aux_params is None else ClassificationHead(CHANNELS[-1], **aux_params)
        )
        self.initialize()

    def initialize(self) -> None:
        """Initialize all convolutions as SMP does those of decoders, by He et al. (2015)."""
        for module in (self.encoder, self.decoder, self.segmentation_head):
            initialize_decoder(module)
        if self.classification_head is not None:
            initialize_head(self.classification_head)


class SegNetDSC(SegNet):
    """SegNet of depthwise-separable convolutions, with 1,749,671 parameters for three classes.

    Each 3 x 3 convolution is a depthwise one and a 1 x 1 one; all else, arguments included, is `SegNet`'s.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> sum(p.numel() for p in smp.create_model("segnetdsc", classes=3).parameters())
        1749671
    """

    separable = True
