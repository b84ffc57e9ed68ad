"""EoMT as an SMP architecture."""

from collections.abc import Callable
from typing import Any

import torch
from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
from segmentation_models_pytorch.base.modules import Activation
from torch import nn
from torch.utils.checkpoint import checkpoint

from vitseg_zoo.architectures.base import TokenModel, plain_vit_encoder
from vitseg_zoo.decoders.eomt import QueryDecoder, QueryPrediction, SemanticHead, query_attention_mask
from vitseg_zoo.encoders.token_blocks import embed_tokens, takes_tokens

_DEFAULT_ENCODER = "vz-vit_base_patch14_reg4_dinov2"


class Eomt(TokenModel):
    """EoMT (Kerssies et al. 2025): queries in a plain ViT's last blocks, each giving a mask and a class.

    Paper: https://arxiv.org/abs/2503.19108. Images may have any size, and are normalized by the user with
    what `smp.encoders.get_preprocessing_params(encoder_name, encoder_weights)` gives.

    The output is logits of each pixel, for any loop, loss and metric. The paper trains the queries
    themselves:

        loss = vitseg_zoo.QueryLoss(classes=19)
        loss(model(images, return_queries=True), masks).backward()

    The model maps (B, in_channels, H, W) to logits (B, classes, H, W); with `aux_params` to a pair of
    them and of the whole image's logits (B, aux classes).

    Args:
        encoder_name: A plain ViT of the zoo, `vz-` and the name of the timm model (ViT, DeiT, EVA-02, DINO v1
            to v3, CLIP, SigLIP). SMP's default, `"resnet34"`, means
            `vz-vit_base_patch14_reg4_dinov2`.
        encoder_depth: There for SMP's interface: a plain ViT has one level, and another number is refused.
        encoder_weights: A tag of the timm model's weights, `"imagenet"` (its default tag) or `None` (random).
        num_queries: Number of queries, 100 by default; more than the classes in any one image.
        query_blocks: In how many of the last blocks queries take part; by default the paper's 3 for ViTs of
            up to 12 blocks, 4 up to 24, and 5 beyond.
        in_channels: Channels of the image, 3 by default.
        classes: Number of output channels, 1 by default.
        activation: Applied to the logits: `"sigmoid"`, `"softmax"`, `"logsoftmax"`, `"tanh"`, `"identity"`, a
            callable or `None` (the default).
        aux_params: Parameters of an auxiliary classification head (`classes`, `pooling`, `dropout`,
            `activation`); none by default.
        encoder_blocks: How many of a plain ViT's transformer blocks are used; all of them by default.
        kwargs: Passed to the timm model, for example `drop_path_rate`.

    Raises:
        ValueError: If the encoder is no plain ViT of the zoo, or of a family that has no place for queries
            (BEiT, relative positions, SAM), or an argument is out of range.
        KeyError: If there is no such encoder or no such weights.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> model = smp.create_model("eomt", "vz-vit_tiny_patch16_224", encoder_weights=None, classes=5)
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
        num_queries: int = 100,
        query_blocks: int | None = None,
        in_channels: int = 3,
        classes: int = 1,
        activation: str | Callable[..., Any] | None = None,
        aux_params: dict[str, Any] | None = None,
        encoder_blocks: int | None = None,
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
        if not takes_tokens(self.encoder.model):
            raise ValueError(
                f"{encoder_name} has no place for queries among its tokens: choose a ViT, DeiT, EVA-02 or "
                f"DINO model, for example {_DEFAULT_ENCODER!r}."
            )
        depth = len(self.encoder.model.blocks)
        if query_blocks is None:
            query_blocks = min(3 if depth <= 12 else 4 if depth <= 24 else 5, depth)
        if not 1 <= query_blocks <= depth:
            raise ValueError(
                f"query_blocks should lie in [1, {depth}], the blocks in use, got {query_blocks}."
            )
        channels = self.encoder.embed_dim
        self.decoder = QueryDecoder(channels, self.encoder.patch_size, classes, num_queries)
        self.segmentation_head = nn.Sequential(SemanticHead(), Activation(activation))
        # How likely each of the last blocks is to restrict a query to its mask; see `anneal_masks`.
        self.mask_probabilities = [0.0] * query_blocks
        self.finish(encoder_name, channels, aux_params)

    def anneal_masks(self, progress: float) -> None:
        """Set masked attention for a point of the training (paper, section 3.3).

        At the start every query attends only to the patches of the mask that it predicts, which speeds
        learning up. Block by block, the earliest first, that becomes ever less likely, until at the end no
        block does it, and the model is a plain ViT. A model on which this is never called has no masked
        attention.

        Args:
            progress: Which part of the training is over, from 0 to 1.
        """
        blocks = len(self.mask_probabilities)
        # Windows of equal length, between a start in which all masks are on and an end in which all are off.
        elapsed = [min(max(progress * (blocks + 2) - 1 - block, 0.0), 1.0) for block in range(blocks)]
        self.mask_probabilities = [(1 - part) ** 0.9 for part in elapsed]

    def forward(
        self, x: torch.Tensor, return_queries: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor] | list[QueryPrediction]:
        """Map images (B, in_channels, H, W) to logits (B, classes, H, W).

        Args:
            x: The images.
            return_queries: Return what the queries predict instead, for their own loss: a `QueryPrediction`
                before each block with masked attention, and the final one.
        """
        height, width = x.shape[2:]
        *logits, patches = self.encoder(x, run=self._predict)
        size = (patches.shape[2] * self.encoder.patch_size, patches.shape[3] * self.encoder.patch_size)
        predictions = [QueryPrediction(*pair, size) for pair in zip(logits[::2], logits[1::2], strict=True)]
        if return_queries:
            return predictions
        masks = self.segmentation_head(predictions[-1])[..., :height, :width]
        if self.classification_head is not None:
            return masks, self.classification_head(patches)
        return masks

    def _predict(self, model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return mask and class logits of each prediction, and the patches (B, D, h, w) of the last block.

        They are in one tuple, as backward hooks on the encoder ask for.
        """
        patch = self.encoder.patch_size
        grid = (
            (x.shape[2] + patch - 1) // patch,
            (x.shape[3] + patch - 1) // patch,
        )  # ONNX rounds towards zero
        num_queries = self.decoder.queries.shape[1]
        tokens, arguments = embed_tokens(model, x, extra_tokens=num_queries)  # (B, prefix + h*w, D)
        first = len(model.blocks) - len(self.mask_probabilities)
        predictions: list[QueryPrediction] = []
        for index, (block, kwargs) in enumerate(zip(model.blocks, arguments, strict=True)):
            if index < first and "rope" in kwargs:
                kwargs = {"rope": kwargs["rope"][..., :-num_queries, :]}
            if index == first:
                tokens = torch.cat([tokens, self.decoder.queries.expand(x.shape[0], -1, -1)], dim=1)
            if index >= first:
                probability = self.mask_probabilities[index - first]
                if probability > 0:
                    prediction, _ = self._read(tokens, grid)
                    predictions.append(prediction)
                    kwargs = {**kwargs, "attn_mask": self._attention_mask(prediction, grid, probability)}
            if model.grad_checkpointing and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False, **kwargs)
            else:
                tokens = block(tokens, **kwargs)
        prediction, patches = self._read(tokens, grid)
        predictions.append(prediction)
        logits = (tensor for p in predictions for tensor in (p.mask_logits, p.class_logits))
        return *logits, patches

    def _read(self, tokens: torch.Tensor, grid: tuple[int, int]) -> tuple[QueryPrediction, torch.Tensor]:
        """Read the prediction off tokens (B, prefix + h*w + Q, D), and give the map of patches too."""
        prefix, num_queries = self.encoder.model.num_prefix_tokens, self.decoder.queries.shape[1]
        tokens = self.encoder.model.norm(tokens)
        patches = tokens[:, prefix:-num_queries].transpose(1, 2).unflatten(2, grid)  # (B, D, h, w)
        return self.decoder(tokens[:, -num_queries:], patches), patches

    def _attention_mask(
        self, prediction: QueryPrediction, grid: tuple[int, int], probability: float
    ) -> torch.Tensor:
        """Mask the attention of some queries by chance in training, else for all or none, the likelier."""
        logits = prediction.mask_logits.detach()
        if self.training:
            free = torch.rand(logits.shape[:2], device=logits.device) >= probability
        else:
            free = logits.new_full(logits.shape[:2], probability < 0.5, dtype=torch.bool)
        # A mask that is positive everywhere restricts nothing.
        logits = logits.masked_fill(free[..., None, None], 1.0)
        return query_attention_mask(logits, grid, self.encoder.model.num_prefix_tokens)
