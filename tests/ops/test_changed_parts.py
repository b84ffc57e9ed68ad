"""Every kind of change on every Linear, Conv and norm: the model computes what its plain form does."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import vitseg_zoo
from vitseg_zoo.ops.dispatch import plain_forms

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def fused_segformer() -> nn.Module:
    model = smp.FusedSegformer("vz-mit_b0", encoder_weights=None, classes=3, decoder_segmentation_channels=16)
    for stage in model.encoder.model.stages:  # one block of each stage is enough
        stage.blocks = stage.blocks[:1]
    return model


def hugging_face() -> nn.Module:
    config = transformers.SegformerConfig(num_labels=3, depths=[1, 1, 1, 1], decoder_hidden_size=16)
    return vitseg_zoo.accelerate(transformers.SegformerForSemanticSegmentation(config))


def smp_segformer() -> nn.Module:
    model = smp.Segformer("mit_b0", encoder_weights=None, classes=3, decoder_segmentation_channels=16)
    for i in range(1, 5):
        stage = getattr(model.encoder, f"block{i}")
        setattr(
            model.encoder, f"block{i}", nn.Sequential(stage[0]) if type(stage) is nn.Sequential else stage[:1]
        )
    return vitseg_zoo.accelerate(model)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "fusedsegformer": fused_segformer,
    "accelerated smp.Segformer": smp_segformer,
    "accelerated Hugging Face": hugging_face,
    "accelerated timm": lambda: vitseg_zoo.accelerate(
        timm.create_model("pvt_v2_b0", depths=(1, 1, 1, 1), num_classes=3)
    ),
    "vitseg": lambda: smp.create_model(
        "vitseg", "vz-vitseg_tiny_patch16_128", encoder_weights=None, classes=3, encoder_blocks=1
    ),
    "segmenter": lambda: smp.create_model(
        "segmenter", "vz-vitseg_tiny_patch16_128", encoder_weights=None, classes=3, encoder_blocks=1
    ),
    "eomt": lambda: smp.create_model(
        "eomt", "vz-vitseg_tiny_patch16_128", encoder_weights=None, classes=3, encoder_blocks=1
    ),
}
LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)


class Own:
    """A layer of the user's that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.1 * super().forward(x)


def subclass(layer: nn.Module) -> nn.Module:
    layer.__class__ = type("Own", (Own, type(layer)), {})
    return layer


def hook(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: 1.1 * output)
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
    if isinstance(layer, nn.BatchNorm2d):
        return nn.GroupNorm(1, layer.num_features)
    return nn.Identity() if isinstance(layer, nn.LayerNorm) else None  # fits tokens and maps


def sharded(layer: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))


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
    "followed by another layer": lambda layer: nn.Sequential(layer, nn.Tanh()),
    "frozen": lambda layer: layer.requires_grad_(False),
    "FSDP2": sharded,
}


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def logits(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    output = model(image)
    return getattr(output, "logits", output)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_every_change_of_every_layer(name: str) -> None:
    base, image = MODELS[name]().eval(), torch.rand(1, 3, 32, 32)
    for parameter in base.parameters():
        if parameter.ndim == 1:  # biases and norms that a mistake would show
            nn.init.normal_(parameter, 0.5, 0.2)
    seen: Counter[str] = Counter()
    with torch.no_grad():
        unchanged = logits(base, image)
    for path, layer in list(base.named_modules()):
        if not isinstance(layer, LAYERS):
            continue
        for kind, change in CHANGES.items():
            part = change(copy.deepcopy(layer))
            if part is None:
                continue
            base.set_submodule(path, part.eval())
            calls: list[int] = []
            if kind == "hook":
                part.register_forward_hook(lambda *args, calls=calls: calls.append(1))
            with torch.no_grad():
                actual = logits(base, image)
                with plain_forms():
                    expected = logits(base, image)
            torch.testing.assert_close(
                actual, expected, atol=1e-4, rtol=1e-4, msg=lambda m, k=kind, p=path: f"{k} on {p}: {m}"
            )
            assert kind != "hook" or len(calls) == 2, path
            seen[kind] += not torch.allclose(actual, unchanged, atol=1e-5)
        base.set_submodule(path, layer)
    assert set(seen) >= set(CHANGES) - {"exchanged"}
    # A change that no output shows would test nothing.
    assert all(seen[kind] for kind in ("subclass", "hook", "LoRA", "pruning"))
