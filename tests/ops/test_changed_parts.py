"""Every kind of change on every layer of every architecture: the model computes what its plain form does."""

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import tiny_vits  # noqa: F401  registers models
import torch
import torch.distributed as dist
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils._pytree import tree_map_only

import vitseg_zoo
from vitseg_zoo.decoders.segnet import ConvBlock
from vitseg_zoo.encoders.mix_block import Block, OverlapPatchEmbed
from vitseg_zoo.encoders.pyramid import _LearnedLevel
from vitseg_zoo.encoders.vit_seg import NormalizedPatchEmbed
from vitseg_zoo.ops.dispatch import plain_forms

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def token_model(name: str, encoder: str, **kwargs: Any) -> nn.Module:
    return smp.create_model(name, encoder, encoder_weights=None, classes=3, encoder_blocks=1, **kwargs)


def hugging_face() -> nn.Module:
    config = transformers.SegformerConfig(num_labels=3, depths=[1, 1, 1, 1], decoder_hidden_size=16)
    return vitseg_zoo.accelerate(transformers.SegformerForSemanticSegmentation(config))


def fused_segformer() -> nn.Module:
    model = smp.FusedSegformer("vz-mit_b0", encoder_weights=None, classes=3, decoder_segmentation_channels=16)
    for stage in model.encoder.model.stages:
        stage.blocks = stage.blocks[:1]
    return model


def smp_segformer() -> nn.Module:
    model = smp.Segformer("mit_b0", encoder_weights=None, classes=3, decoder_segmentation_channels=16)
    for i in range(1, 5):
        stage = getattr(model.encoder, f"block{i}")
        setattr(model.encoder, f"block{i}", type(stage)(*list(stage)[:1]))
    return vitseg_zoo.accelerate(model)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "fusedsegformer": fused_segformer,
    "accelerated smp.Segformer": smp_segformer,
    "accelerated Hugging Face": hugging_face,
    "accelerated timm": lambda: vitseg_zoo.accelerate(
        timm.create_model("pvt_v2_b0", depths=(1, 1, 1, 1), num_classes=3)
    ),
    "vitseg": lambda: token_model("vitseg", "vz-vitseg_tiny_patch16_128", decoder_head="mlp"),
    "segmenter": lambda: token_model("segmenter", "vz-tiny_vit", decoder_depth=1),
    "eomt": lambda: token_model("eomt", "vz-tiny_vit", num_queries=5),
    "pyramid": lambda: smp.encoders.get_encoder("vz-tiny_vit", weights=None),
    "segnet": lambda: smp.create_model("segnetdsc", classes=3),
}
# The first block is enough, and of the stages, which are of one class, all but the third; only the fast form
# of a patch embedding cuts patches by a module.
OTHERS = re.compile(r"blocks\.[1-9]|stages\.2|block3|patchify")
# What is run by itself, as it holds all that its fast form bypasses; the accelerated ones have `why_plain`.
UNITS = (Block, OverlapPatchEmbed, NormalizedPatchEmbed, ConvBlock, _LearnedLevel, TimmBlock)
LAYERS = (nn.Linear, _ConvNd, nn.LayerNorm, nn.BatchNorm2d)
ACTIVATIONS = (nn.GELU, nn.ReLU, transformers.activations.GELUActivation)


def bent(output: Any) -> Any:
    """Something else than a layer's output, which no norm behind it takes back; of several, the first."""
    if isinstance(output, tuple):
        return bent(output[0]), *output[1:]
    return output + output.sigmoid()


class Own:
    """A layer of the user's that computes something else."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return bent(super().forward(*args, **kwargs))


def subclass(layer: nn.Module) -> nn.Module:
    layer.__class__ = type("Own", (Own, type(layer)), {})
    return layer


def hook(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: bent(output))
    return layer


def lora(layer: nn.Module) -> nn.Module | None:
    if type(layer) is not nn.Linear:
        return None
    config = peft.LoraConfig(target_modules=["0"], init_lora_weights=False)
    return peft.inject_adapter_in_model(config, nn.Sequential(layer))[0]


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def quantized(layer: nn.Module) -> nn.Module | None:
    if type(layer) is not nn.Linear:
        return None
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear})[0]


def with_matrix(change: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module | None]:
    return lambda layer: change(layer) if layer.weight.ndim > 1 else None


def exchanged(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, ACTIVATIONS):
        return nn.Softplus()
    if isinstance(layer, nn.BatchNorm2d):
        return nn.GroupNorm(1, layer.num_features)
    return nn.Identity() if isinstance(layer, nn.LayerNorm) else None  # fits tokens and maps


CHANGES: dict[str, Callable[[nn.Module], nn.Module | None]] = {
    "subclass": subclass,
    "hook": hook,
    "LoRA": lora,
    "weight norm": with_matrix(parametrizations.weight_norm),
    "old weight norm": with_matrix(weight_norm),
    "spectral norm": with_matrix(parametrizations.spectral_norm),
    "old spectral norm": with_matrix(spectral_norm),
    "pruning": pruned,
    "dynamic quantization": quantized,
    "exchanged": exchanged,
    "followed by another layer": lambda layer: nn.Sequential(layer, nn.Softplus()),
    "frozen": lambda layer: layer.requires_grad_(False),
    "FSDP2": lambda layer: fully_shard(layer, mesh=init_device_mesh("cpu", (1,))),
}
# Of these the gradients are compared, too; of a changed one the predicate says the same in both modes.
TRAINED = ("LoRA", "pruning", "frozen", "FSDP2")
OF_ACTIVATIONS = ("subclass", "hook", "exchanged", "followed by another layer")


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def changes_of(part: nn.Module, bypassed: bool) -> Iterator[tuple[str, nn.Module]]:
    """Each kind of change of a part, and what takes its place; of others where they are bypassed."""
    kinds: tuple[str, ...] = ()
    if isinstance(part, LAYERS):
        kinds = tuple(CHANGES)
    elif isinstance(part, ACTIVATIONS):
        kinds = OF_ACTIVATIONS
    elif bypassed and not isinstance(part, nn.ModuleList):
        kinds = ("subclass", "hook")
    for kind in kinds:
        changed = CHANGES[kind](copy.deepcopy(part))
        if changed is not None:
            yield kind, changed
    for name in {"scale", "scaling"} & vars(part).keys() if bypassed else ():  # of attention
        changed = copy.deepcopy(part)
        setattr(changed, name, 2 * getattr(part, name))
        yield "scale", changed
    holds_layers = isinstance(part, nn.Sequential) and any(isinstance(layer, LAYERS) for layer in part)
    if holds_layers and not isinstance(part, _LearnedLevel):  # whose last two are of its own making
        yield "appended", copy.deepcopy(part).append(nn.Softplus())


def tensors(output: Any) -> list[torch.Tensor]:
    """The tensors with values of an output: of a module of the zoo, of SMP or of Hugging Face."""
    output = [getattr(output, "logits", output)]
    found: list[torch.Tensor] = []
    tree_map_only(torch.Tensor, found.append, output)
    return [tensor for tensor in found if tensor.is_floating_point()]


def run(unit: nn.Module, args: tuple, kwargs: dict[str, Any], trains: bool = False) -> dict[str, Any]:
    """What a unit gives in evaluation; or what it gives in training, by batch statistics, and gradients."""
    if not trains:
        with torch.no_grad():
            return dict(enumerate(tensors(unit(*args, **kwargs))))
    norms = [module for module in unit.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
    unit.zero_grad()
    outputs = tensors(unit(*args, **kwargs))
    sum(output.square().mean() for output in outputs).backward()
    for norm in norms:
        norm.eval()
    return {**dict(enumerate(outputs)), **{name: p.grad for name, p in unit.named_parameters()}}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_every_change_of_every_layer(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases and norms that a mistake would show
            nn.init.normal_(parameter, 0.5, 0.2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # statistics stay, so that each run starts from the same
    inputs: dict[str, tuple[tuple, dict[str, Any]]] = {}
    units = {
        path: unit
        for path, unit in model.named_modules()
        if not path or isinstance(unit, UNITS) or hasattr(unit, "why_plain")
    }
    handles = [
        unit.register_forward_pre_hook(
            lambda module, args, kwargs, path=path: inputs.__setitem__(path, (args, kwargs)), with_kwargs=True
        )
        for path, unit in units.items()
    ]
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64), **({"return_queries": True} if name == "eomt" else {}))
    for handle in handles:
        handle.remove()
    unchanged = {path: run(unit, *inputs[path]) for path, unit in units.items() if path in inputs}

    assert all(unit.why_plain() is None for unit in units.values() if hasattr(unit, "why_plain"))

    done, shows = Counter[str](), Counter[str]()
    for path, part in list(model.named_modules()):
        if not path or OTHERS.search(path):
            continue
        names = path.split(".")
        ancestors = [".".join(names[:length]) for length in range(len(names))]
        home = next(ancestor for ancestor in reversed(ancestors) if ancestor in units)
        unit, within = units[home], path.removeprefix(f"{home}.") if home else path
        is_layer = isinstance(part, (*LAYERS, *ACTIVATIONS))
        for kind, changed in changes_of(part, bypassed=bool(home) and path not in units):
            unit.set_submodule(within, changed.eval())
            calls: list[int] = []
            if kind == "hook":
                changed.register_forward_hook(lambda *args, calls=calls: calls.append(1))
            for trains in (False, True) if kind in TRAINED else (False,):
                actual = run(unit, *inputs[home], trains)
                fast_calls = len(calls)
                with plain_forms():
                    expected = run(unit, *inputs[home], trains)
                assert actual.keys() == expected.keys()
                for key, value in expected.items():
                    assert (actual[key] is None) == (value is None), f"{kind} on {path}: {key}"
                    if value is not None:
                        error = (actual[key] - value).abs().max()
                        bound = 1e-5 + 1e-3 * value.abs().max()
                        assert error < bound, f"{kind} on {path}: {key} is off by {error}"
            assert 2 * fast_calls == len(calls), path
            if is_layer or kind == "scale":
                assert calls or kind != "hook", path
                done[kind] += 1
                shows[kind] += any(
                    not torch.allclose(actual[key], value) for key, value in unchanged[home].items()
                )
        unit.set_submodule(within, part)
    assert set(done) >= set(CHANGES) - {"LoRA", "dynamic quantization"}, "these need a linear layer"
    for kind in ("subclass", "hook", "LoRA", "pruning", "exchanged", "followed by another layer"):
        assert shows[kind] == done[kind], f"{kind}: what no output shows tests nothing"
    assert shows["scale"] == done["scale"] or not name.startswith("accelerated")  # timm's ViT ignores it


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["fusedsegformer", "vitseg", "segmenter", "eomt"])
@pytest.mark.parametrize("part", ["encoder", "encoder.model"])
def test_parts_of_an_encoder_are_sharded(name: str, part: str) -> None:
    torch.manual_seed(0)
    model, image = MODELS[name]().eval(), torch.rand(1, 3, 64, 64)
    expected = run(model, (image,), {}, trains=True)
    for each in (model.get_submodule(part), model):
        fully_shard(each, mesh=init_device_mesh("cpu", (1,)))
    actual = run(model, (image,), {}, trains=True)
    for key, value in expected.items():
        tensor = actual[key].full_tensor() if isinstance(actual[key], DTensor) else actual[key]
        torch.testing.assert_close(tensor, value, rtol=1e-3, atol=1e-5)
