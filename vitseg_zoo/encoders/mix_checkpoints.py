"""Weights of MiT and SegFormer, however their names are spelled, under the zoo's names.

The zoo's names for the encoder are those of timm's PVTv2; for a whole SegFormer they are SMP's, with the
timm model under `encoder.model`. Recognized by their keys:

* NVIDIA's repository and SMP: `patch_embed1`, `block1.0`, `norm1`; `decode_head.linear_c4` or
  `decoder.mlp_stage`;
* Hugging Face, before and since transformers 5: `encoder.block.0.0` or `stages.0.blocks.0`, with keys and
  values apart; bare, or inside a model for classification or segmentation;
* timm's PVTv2, and the zoo's own.

mmsegmentation's own SegFormer is refused: its head has a norm and a ReLU on every level, which is another
function.
"""

import re
from collections.abc import Mapping

import torch
from torch import nn

StateDict = dict[str, torch.Tensor]

# What may stand before an encoder's keys.
_ENCODER_PREFIX = re.compile(r"^(backbone|segformer\.encoder|segformer|encoder\.model|encoder|model)\.")

# Places of a stage's parts. NVIDIA and SMP count stages from 1, Hugging Face from 0.
_STAGE_PARTS = (
    (re.compile(r"^patch_embed(\d)\."), 1, "downsample."),
    (re.compile(r"^patch_embeddings\.(\d)\."), 0, "downsample."),
    (re.compile(r"^stages\.(\d)\.patch_embeddings\."), 0, "downsample."),
    (re.compile(r"^block(\d)\."), 1, "blocks."),
    (re.compile(r"^block\.(\d)\."), 0, "blocks."),
    (re.compile(r"^norm(\d)\."), 1, "norm."),
    (re.compile(r"^layer_norm\.(\d)\."), 0, "norm."),
    (re.compile(r"^stages\.(\d)\.layer_norm\."), 0, "norm."),
)

# Names within a stage; the longer ones first.
_LAYERS = (
    ("attention.self.query.", "attn.q."),
    ("attention.self.key.", "attn.k."),
    ("attention.self.value.", "attn.v."),
    ("attention.self.sr.", "attn.sr."),
    ("attention.self.layer_norm.", "attn.norm."),
    ("attention.output.dense.", "attn.proj."),
    ("attention.q_proj.", "attn.q."),
    ("attention.k_proj.", "attn.k."),
    ("attention.v_proj.", "attn.v."),
    ("attention.sequence_reduction.sequence_reduction.", "attn.sr."),
    ("attention.sequence_reduction.layer_norm.", "attn.norm."),
    ("attention.o_proj.", "attn.proj."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("layer_norm_1.", "norm1."),
    ("layer_norm_2.", "norm2."),
    ("mlp.dense1.", "mlp.fc1."),
    ("mlp.dense2.", "mlp.fc2."),
    ("dwconv.dwconv.", "dwconv."),
    ("downsample.layer_norm.", "downsample.norm."),
)

# Keys of a head, and how many minus the level's number is the place of its projection in SMP's decoder.
_PROJECTIONS = (
    (re.compile(r"^decode_head\.linear_c(\d)\.proj\."), 4),
    (re.compile(r"^decode_head\.linear_c\.(\d)\.proj\."), 3),
    (re.compile(r"^decode_head\.linear_projections\.(\d)\.proj\."), 3),
)
_HEAD_LAYERS = (
    ("decode_head.linear_fuse.conv.", "decoder.fuse_stage.0."),
    ("decode_head.linear_fuse.bn.", "decoder.fuse_stage.1."),
    ("decode_head.linear_fuse.", "decoder.fuse_stage.0."),
    ("decode_head.batch_norm.", "decoder.fuse_stage.1."),
    ("decode_head.linear_pred.", "segmentation_head.0."),
    ("decode_head.classifier.", "segmentation_head.0."),
)


def checkpoint_filter_fn(state_dict: Mapping[str, torch.Tensor], model: nn.Module | None = None) -> StateDict:
    """Give the weights of an encoder the names of `mit_*`, as timm's `pretrained=True` asks for it.

    Args:
        state_dict: Weights in any of the formats above. Those of a segmentation head are left out.
        model: The model that they are for, in timm's order of arguments. Classifiers and stages that it
            does not have are left out.

    Returns:
        Weights under the zoo's names; unknown names are kept, so that loading reports them.

    Raises:
        ValueError: If the weights are mmsegmentation's own.

    Example:
        >>> import segmentation_models_pytorch as smp, timm
        >>> source = smp.encoders.get_encoder("mit_b0", weights=None)
        >>> model = timm.create_model("mit_b0", num_classes=0)
        >>> model.load_state_dict(checkpoint_filter_fn(source.state_dict(), model))
        <All keys matched successfully>
    """
    _refuse_mmsegmentation(state_dict)
    converted: StateDict = {}
    for key, value in state_dict.items():
        if not key.startswith(("decode_head.", "decoder.", "segmentation_head.")):
            converted[_encoder_key(key)] = value
    for key in [key for key in converted if ".attn.k." in key]:
        k, v = converted.pop(key), converted.pop(key.replace(".attn.k.", ".attn.v."))
        converted[key.replace(".attn.k.", ".attn.kv.")] = torch.cat([k, v])
    if model is not None:
        absent = _absent_parts(model)
        converted = {key: value for key, value in converted.items() if not key.startswith(absent)}
    return converted


def convert_segformer(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Give the weights of a whole SegFormer the names of `FusedSegformer` with an encoder `vz-mit_*`.

    Args:
        state_dict: Weights of NVIDIA's, Hugging Face's or SMP's SegFormer, or the zoo's.

    Returns:
        Weights under the zoo's names.

    Raises:
        ValueError: If the weights are mmsegmentation's own, or are no SegFormer's.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> source = smp.Segformer("mit_b0", encoder_weights=None, classes=19)
        >>> model = smp.create_model("fusedsegformer", "vz-mit_b0", None, classes=19)
        >>> model.load_state_dict(convert_segformer(source.state_dict()))
        <All keys matched successfully>
    """
    encoder = checkpoint_filter_fn(state_dict)
    converted = {f"encoder.model.{key}": value for key, value in encoder.items()}
    for key, value in state_dict.items():
        if key.startswith("decode_head.conv_seg."):
            continue  # mmcv's unused twin of linear_pred
        if key.startswith(("decode_head.", "decoder.", "segmentation_head.")):
            converted[_head_key(key)] = value
    if not {"decoder.fuse_stage.0.weight", "encoder.model.patch_embed.proj.weight"} <= converted.keys():
        raise ValueError(
            "These are not the weights of a SegFormer: expected keys of NVIDIA's, Hugging Face's, SMP's or "
            f"the zoo's, got {list(state_dict)[:3]} and so on."
        )
    return converted


def convert_to_smp(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Give the weights of a zoo's model with an encoder `vz-mit_*` the names that SMP's `mit_*` has.

    Args:
        state_dict: Weights of an SMP model with an encoder `vz-mit_*`, for example of `FusedSegformer`.

    Returns:
        Weights under SMP's names; they fit `smp.Segformer` with the encoder `mit_*` of the same size.
    """
    rules = (
        (r"^encoder\.model\.patch_embed\.", lambda m: "encoder.patch_embed1."),
        (r"^encoder\.model\.stages\.(\d)\.downsample\.", lambda m: f"encoder.patch_embed{int(m[1]) + 1}."),
        (r"^encoder\.model\.stages\.(\d)\.blocks\.", lambda m: f"encoder.block{int(m[1]) + 1}."),
        (r"^encoder\.model\.stages\.(\d)\.norm\.", lambda m: f"encoder.norm{int(m[1]) + 1}."),
        (r"\.mlp\.dwconv\.", lambda m: ".mlp.dwconv.dwconv."),
    )
    converted = {}
    for key, value in state_dict.items():
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        converted[key] = value
    return converted


def _encoder_key(key: str) -> str:
    key = _ENCODER_PREFIX.sub("", key)
    for pattern, first, part in _STAGE_PARTS:
        if match := pattern.match(key):
            key = f"stages.{int(match[1]) - first}.{part}{key[match.end() :]}"
            break
    for name, own in _LAYERS:
        key = key.replace(name, own)
    key = key.replace("stages.0.downsample.", "patch_embed.")
    return re.sub(r"^classifier\.", "head.", key)


def _head_key(key: str) -> str:
    for pattern, last in _PROJECTIONS:
        if match := pattern.match(key):
            return f"decoder.mlp_stage.{last - int(match[1])}.linear.{key[match.end() :]}"
    for name, own in _HEAD_LAYERS:
        if key.startswith(name):
            return own + key.removeprefix(name)
    return key


def _absent_parts(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of a classifier or of last stages that the model was made without."""
    absent = [f"stages.{i}." for i in range(len(model.stages), 4)]
    if isinstance(model.head, nn.Identity):
        absent.append("head.")
    return tuple(absent)


def _refuse_mmsegmentation(state_dict: Mapping[str, torch.Tensor]) -> None:
    mmsegmentation = re.compile(r"^(decode_head\.(convs|fusion_conv)\.|(backbone\.)?layers\.\d\.\d\.)")
    if any(mmsegmentation.match(key) for key in state_dict):
        raise ValueError(
            "These are the weights of mmsegmentation's own SegFormer, whose head is another function (a norm "
            "and a ReLU on every level): use the weights of NVIDIA's repository or of Hugging Face instead."
        )
