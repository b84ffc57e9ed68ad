"""The formats of weights that are recognized by their keys, and converted to the zoo's names."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vitseg_zoo.decoders.segnet_checkpoints import convert_plain_segnet, is_plain_segnet
from vitseg_zoo.encoders.mix_checkpoints import checkpoint_filter_fn, convert_segformer

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Format:
    """A format of weights."""

    name: str  # as it is reported
    is_model: bool  # a complete segmentation model, not an encoder alone
    matches: Callable[[StateDict], bool]  # by keys
    convert: Callable[[StateDict], StateDict]  # to the names of the zoo's model, or of its timm model
    unused: str = "$."  # pattern of what models of the format have and do not compute with


def recognize(weights: StateDict) -> Format | None:
    """Find the format of a state dict; None if it is not known."""
    return next((known for known in FORMATS if known.matches(weights)), None)


# Tensors that conversions join: queries, keys and values.
_JOINED = re.compile(r"\b(w?[qkv]|query|key|value)(_proj)?\.(weight|bias)$|\.[qkv]_bias$")


def left_out(weights: StateDict, converted: StateDict) -> list[str]:
    """Say which tensors a conversion made nothing of.

    What is renamed or taken apart shares the tensors' memory, what is resampled bears their names.

    Args:
        weights: What was converted.
        converted: What came out.

    Example:
        >>> left_out({"a": torch.zeros(2), "b": torch.zeros(1)}, {"b": torch.zeros(4)})
        ['a']
    """
    used = {value.untyped_storage()._cdata for value in converted.values()}
    return [
        key
        for key, value in weights.items()
        if value.untyped_storage()._cdata not in used
        and not _JOINED.search(key)
        and not any(key.endswith(name) for name in converted)
    ]


def convert_notebook(weights: StateDict) -> StateDict:
    """Give the weights of the article's notebook the names of `smp.VitSeg`.

    The notebook's layers are: 0 the batch norm, 1 the patch embedding, 2 the blocks, 3 the projection to
    pixels.

    Args:
        weights: `layers.1.pe.embed_layer.weight` and so on.

    Returns:
        Weights under the zoo's names; unknown names are kept, so that loading reports them.
    """
    rules = (
        (r"^layers\.0\.", "encoder.model.patch_embed.input_norm."),
        (r"^layers\.1\.pe\.embed_layer\.", "encoder.model.patch_embed.proj."),
        (r"^layers\.1\.position_embed(\.weight)?$", "encoder.model.pos_embed"),
        (r"^layers\.2\.(\d+)\.ln1\.", r"encoder.model.blocks.\1.norm1."),
        (r"^layers\.2\.(\d+)\.ln2\.", r"encoder.model.blocks.\1.norm2."),
        (r"^layers\.2\.(\d+)\.mha\.in_proj_", r"encoder.model.blocks.\1.attn.qkv."),
        (r"^layers\.2\.(\d+)\.mha\.out_proj\.", r"encoder.model.blocks.\1.attn.proj."),
        (r"^layers\.2\.(\d+)\.mlp\.layers\.0\.", r"encoder.model.blocks.\1.mlp.fc1."),
        (r"^layers\.2\.(\d+)\.mlp\.layers\.[1-9]\.", r"encoder.model.blocks.\1.mlp.fc2."),
        (r"^layers\.3\.projection\.", "segmentation_head.0."),
    )
    channels = weights["layers.0.weight"].numel()
    converted = {}
    for key, value in weights.items():
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        if key == "encoder.model.patch_embed.proj.weight":  # (D, C * p * p) to a convolution's (D, C, p, p)
            side = round((value.shape[1] / channels) ** 0.5)
            value = value.reshape(value.shape[0], channels, side, side)
        elif key == "encoder.model.pos_embed":
            value = value.reshape(1, -1, value.shape[-1])  # (1, N, D)
        converted[key] = value
    return converted


def convert_segmenter(weights: StateDict) -> StateDict:
    """Give the weights of the authors' Segmenter the names of `smp.Segmenter`.

    Args:
        weights: `encoder.blocks.0.norm1.weight`, `decoder.cls_emb` and so on; with the linear decoder
            `decoder.head.weight`.

    Returns:
        Weights under the zoo's names; the ViT's own classifier is left out.
    """
    decoder = {
        "decoder.cls_emb": "decoder.class_tokens",
        "decoder.proj_dec.": "decoder.proj_in.",
        "decoder.decoder_norm.": "decoder.norm.",
        "decoder.proj_classes": "decoder.proj_class",
        "decoder.head.": "decoder.",
    }
    converted = {}
    for key, value in weights.items():
        if key.startswith(("encoder.head.", "encoder.head_dist.", "encoder.pre_logits.")):
            continue
        name = re.sub(r"^encoder\.(?!model\.)", "encoder.model.", key)
        for old, new in decoder.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        if name == "decoder.weight" and value.ndim == 2:  # a linear layer as a 1 x 1 convolution
            value = value[:, :, None, None]
        converted[name] = value
    return converted


def _has(*patterns: str) -> Callable[[StateDict], bool]:
    """Say whether each pattern is at the start of some key."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda weights: all(any(pattern.match(key) for key in weights) for pattern in compiled)


def _same(weights: StateDict) -> StateDict:
    return dict(weights)


_MIT = (
    r"((backbone|encoder|segformer|segformer\.encoder|encoder\.model|model)\.)?"
    r"(patch_embed1\.proj|(encoder\.)?patch_embeddings\.0\.proj|stages\.0\.patch_embeddings|stages\.\d\.blocks\.0\.attn\.)"
)

# Of an encoder's weights; used where the model has one, too.
_CLASSIFIER = r"(head|head_dist|classifier)\."

# The first that matches counts.
FORMATS = (
    Format(
        "ViT-seg of the article's notebook", True, _has(r"layers\.1\.pe\.embed_layer\."), convert_notebook
    ),
    Format(
        "Segmenter of its authors",
        True,
        _has(r"encoder\.blocks\.0\.attn\.qkv\.", r"decoder\.(cls_emb|head\.weight)$"),
        convert_segmenter,
        unused=r"encoder\.(head|head_dist|pre_logits)\.",  # the ViT's classifier
    ),
    # Converting these refuses them, with the reason.
    Format(
        "mmsegmentation's SegFormer", True, _has(r"decode_head\.(convs|fusion_conv)\."), convert_segformer
    ),
    Format(
        "SegFormer of NVIDIA",
        True,
        _has(r"decode_head\.linear_c\d\.", _MIT),
        convert_segformer,
        unused=r"decode_head\.conv_seg\.",  # made by mmcv, used by nothing
    ),
    Format(
        "SegFormer of Hugging Face",
        True,
        _has(r"decode_head\.(linear_c\.\d|linear_projections\.\d)\.", _MIT),
        convert_segformer,
    ),
    Format(
        "SegFormer of SMP",
        True,
        _has(r"decoder\.fuse_stage\.", r"encoder\.patch_embed1\."),
        convert_segformer,
    ),
    Format("model of SMP", True, _has(r"encoder\.", r"(decoder|segmentation_head)\."), _same),
    Format("MiT or PVTv2", False, _has(_MIT), checkpoint_filter_fn, unused=_CLASSIFIER),
    Format("ViT of timm", False, _has(r"blocks\.0\.", r"patch_embed\.proj\."), _same, unused=_CLASSIFIER),
    Format(
        "plain SegNet", True, is_plain_segnet, convert_plain_segnet
    ),  # by shapes: last, as it takes longest
)
