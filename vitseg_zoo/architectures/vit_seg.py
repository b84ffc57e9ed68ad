"""ViT-seg as an SMP architecture."""

from collections.abc import Callable
from typing import Any

from segmentation_models_pytorch.base.hub_mixin import supports_config_loading

from vitseg_zoo.architectures.base import TokenModel, logit_refinement, plain_vit_encoder
from vitseg_zoo.decoders.vit_seg import PatchDecoder, PatchHead

_ARTICLE_ENCODER = "vz-vitseg_base_patch16_128"


class VitSeg(TokenModel):
    """ViT-seg: a plain Vision Transformer, and a head that turns each token into the logits of its patch.

    As described in the article series "Efficient Image Segmentation Using PyTorch"; the defaults are the
    article's model of 86,284,806 parameters for three classes at 128 x 128. Images may have any size.

    With an encoder of the article's, `vz-vitseg_*`, images hold values in [0, 1] and need no normalization:
    the model's first layer is a batch norm. With any other encoder the user normalizes, as everywhere in SMP:
    with the mean and deviation that `smp.encoders.get_preprocessing_params(encoder_name, encoder_weights)`
    gives.

    The model maps (B, in_channels, H, W) to logits (B, classes, H, W); with `aux_params` to a pair of
    them and of the whole image's logits (B, aux classes).

    Args:
        encoder_name: A plain ViT of the zoo: `vz-` and the name of the timm model. SMP's own default,
            `"resnet34"`, which `smp.create_model` passes where nothing is chosen, means the article's encoder
            without weights.
        encoder_depth: There for SMP's interface: a plain ViT has one level, and another number is refused.
        encoder_weights: `None` (random initialization, the default) or a tag of the timm model's weights.
        decoder_head: `"linear"`, the article's, or `"mlp"`, with a hidden layer in front.
        in_channels: Channels of the image, 3 by default.
        classes: Number of output channels, 3 by default.
        activation: Applied to the logits: `"sigmoid"`, `"softmax"`, `"logsoftmax"`, `"tanh"`, `"identity"`, a
            callable or `None` (the default).
        aux_params: Parameters of an auxiliary classification head (`classes`, `pooling`, `dropout`,
            `activation`); none by default.
        encoder_blocks: How many of a plain ViT's transformer blocks are used; all of them by default.
        decoder_refinement: Correct the logits by what small convolutions see of the image at strides 4 and 2;
            off by default.
        kwargs: Passed to the timm model, for example `drop_path_rate` or `img_size`.

    Raises:
        ValueError: If the encoder is no plain ViT, or has fewer blocks than `encoder_blocks`.
        KeyError: If there is no such encoder or no such weights.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> model = smp.create_model("vitseg", classes=3).eval()
        >>> model(torch.rand(1, 3, 128, 128)).shape
        torch.Size([1, 3, 128, 128])
    """

    default_encoder = (_ARTICLE_ENCODER, None)

    @supports_config_loading
    def __init__(
        self,
        encoder_name: str = _ARTICLE_ENCODER,
        encoder_depth: int | None = None,
        encoder_weights: str | None = None,
        decoder_head: str = "linear",
        in_channels: int = 3,
        classes: int = 3,
        activation: str | Callable[..., Any] | None = None,
        aux_params: dict[str, Any] | None = None,
        encoder_blocks: int | None = None,
        decoder_refinement: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        encoder_name, encoder_weights = self.choose_encoder(encoder_name, encoder_weights)
        self.encoder = plain_vit_encoder(
            encoder_name,
            encoder_weights,
            in_channels,
            encoder_depth=encoder_depth,
            encoder_blocks=encoder_blocks,
            **kwargs,
        )
        channels = self.encoder.out_channels[-1]
        self.decoder = PatchDecoder(channels, head=decoder_head)
        self.segmentation_head = PatchHead(channels, classes, self.encoder.output_stride, activation)
        refinement = logit_refinement(in_channels, classes) if decoder_refinement else None
        self.finish(encoder_name, channels, aux_params, refinement)
