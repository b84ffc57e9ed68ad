"""What every model of the zoo has to do; a new architecture is covered by being registered."""

import copy
import pickle
from collections.abc import Callable
from unittest.mock import patch

import gpu_counts
import pytest
import segmentation_models_pytorch as smp
import tiny_vits
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

import vitseg_zoo
from vitseg_zoo.ops import segformer_head
from vitseg_zoo.ops.dispatch import plain_forms
from vitseg_zoo.ops.not_scriptable import NotScriptable

# Architectures stand over a tiny plain ViT, but those that have an encoder of their own, or that kind.
_OWN_ENCODERS = {"fusedsegformer": "vz-tiny_mit", "segnet": "segnet", "segnetdsc": "segnetdsc"}
EACH_ARCHITECTURE = [
    (arch, _OWN_ENCODERS.get(arch, "vz-tiny_vit")) for arch in vitseg_zoo.list_models(kind="architecture")
]
ARCHITECTURES = [
    *EACH_ARCHITECTURE,
    ("vitseg", "vz-vitseg_tiny_patch16_128"),
    ("segmenter", "vz-tiny_mit"),
    ("fusedsegformer", "vz-tiny_vit"),
]
# Each form that a plain ViT has, and MiT, in a U-Net; each family of plain ViTs in the smallest model.
ENCODERS = [
    *(("unet", name) for name in smp.encoders.encoders if name.endswith("-tiny_vit")),
    *(("vitseg", f"vz-{name}") for name in tiny_vits.FAMILIES if name != "tiny_vit"),
    ("unet", "vz-tiny_mit"),
]
each_model = pytest.mark.parametrize(
    ("arch", "encoder"), [pytest.param(*case, id="-".join(case)) for case in (*ARCHITECTURES, *ENCODERS)]
)

# Where bf16 is emulated, segnet's convolutions take a minute; segnetdsc is the same network.
each_small_model = pytest.mark.parametrize(
    ("arch", "encoder"), [case for case in (*ARCHITECTURES, *ENCODERS) if case[0] != "segnet"]
)


@pytest.fixture
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of five in the tiny ViTs, where a block takes seconds to trace and is like another."""
    monkeypatch.setitem(tiny_vits.SIZES, "depth", 2)


def build(arch: str, encoder: str, **kwargs) -> nn.Module:
    if encoder == "vz-vitseg_tiny_patch16_128":
        kwargs["encoder_blocks"] = 3  # of 12, which are alike
    return smp.create_model(arch, encoder, encoder_weights=None, **{"classes": 3, **kwargs})


@each_model
def test_all_parameters_learn(arch: str, encoder: str) -> None:
    model = build(arch, encoder).train()
    logits = model(torch.rand(2, 3, 64, 96))
    assert logits.shape == (2, 3, 64, 96)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@each_model
@pytest.mark.parametrize("training", [False, True])
def test_gives_shapes_on_the_meta_device(arch: str, encoder: str, training: bool) -> None:
    """Where a model costs no memory and no time, for what counts or plans it."""
    with torch.device("meta"):
        logits = build(arch, encoder).train(training)(torch.rand(2, 3, 64, 96))
    assert logits.is_meta and logits.shape == (2, 3, 64, 96)


@each_model
def test_channels_classes_and_a_second_head(arch: str, encoder: str) -> None:
    model = build(arch, encoder, in_channels=4, classes=5, activation="sigmoid", aux_params={"classes": 2})
    masks, labels = model.eval()(torch.rand(2, 4, 64, 64))
    assert masks.shape == (2, 5, 64, 64) and labels.shape == (2, 2)
    assert masks.min() >= 0 and masks.max() <= 1


@each_model
def test_odd_sizes_are_taken_or_refused_in_a_sentence(arch: str, encoder: str) -> None:
    model = build(arch, encoder).eval()
    image = torch.rand(1, 3, 50, 33)
    if model.requires_divisible_input_shape:
        with pytest.raises(RuntimeError, match="Expected image height and width divisible by"):
            model(image)
    else:
        assert model(image).shape == (1, 3, 50, 33)


@each_small_model
def test_types_of_numbers(arch: str, encoder: str) -> None:
    model, image = build(arch, encoder).eval(), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = model(image)
        in_half = copy.deepcopy(model).bfloat16()(image.bfloat16())
        in_double = model.double()(image.double())
    assert in_double.dtype == torch.float64 and in_half.dtype == torch.bfloat16
    scale = float(expected.abs().mean())
    torch.testing.assert_close(in_double.float(), expected, rtol=1e-3, atol=1e-2 * scale)
    for rough in (under_autocast, in_half):  # on the average: what a maximum picks may change altogether
        assert (rough - expected).abs().mean() < 0.4 * scale


# MiT-B0, as errors of a smaller one vary too much to compare.
_WITH_FORMS_OF_THEIR_OWN = [
    (arch, encoder.replace("tiny_mit", "mit_b0"))
    for arch, encoder in ARCHITECTURES
    if not arch.startswith("segnet")
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("arch", "encoder"), [*_WITH_FORMS_OF_THEIR_OWN, ("unet", "vz-tiny_vit")])
def test_autocast_is_as_exact_as_with_plain_layers(arch: str, encoder: str, dtype: torch.dtype) -> None:
    """Forms for a CPU and for a GPU, in a step scaled as `GradScaler` does, compared with fp64."""
    torch.manual_seed(0)
    model, image = build(arch, encoder).train(), torch.rand(2, 3, 32, 64)
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0

    def step(model: nn.Module, image: torch.Tensor, low: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        model = copy.deepcopy(model)
        with torch.autocast("cpu", dtype, enabled=low):
            logits = model(image)
        scale = 65536 if dtype is torch.float16 and low else 1
        loss = (logits.float() if low else logits).square().mean() * scale
        grads = torch.autograd.grad(loss, list(model.parameters()))
        return logits.detach().double(), torch.cat([grad.double().flatten() for grad in grads]) / scale

    expected = step(model.double(), image.double(), low=False)
    model.float()
    with plain_forms():
        plain = step(model, image)
    on_cpu = step(model, image)
    with (
        patch.object(segformer_head, "runs_eagerly_on_gpu", return_value=True),
        patch.object(segformer_head, "runs_eagerly_on_cpu", return_value=False),
    ):
        on_gpu = step(model, image)
    for form in (on_cpu, on_gpu):
        for ours, theirs, exact in zip(form, plain, expected, strict=True):
            if theirs.isfinite().all():
                assert (ours - exact).norm() <= 1.25 * (theirs - exact).norm()


@each_model
@pytest.mark.parametrize("training", [False, True])
def test_runs_on_a_gpu(arch: str, encoder: str, training: bool) -> None:
    """On a fake one, where stray CPU tensors fail, and so does what the host would have to wait for."""
    model = build(arch, encoder).train(training)
    # Rotary frequencies and the like are in no state dict, but move with the model.
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = {key: torch.empty_like(t, device="cuda") for key, t in tensors.items()}
        # Another size than the ViT's, so that position embeddings are resampled, too.
        output = torch.func.functional_call(model, state, torch.rand(2, 3, 64, 96, device="cuda"))
    assert output.device.type == "cuda" and output.shape == (2, 3, 64, 96)


@pytest.mark.parametrize(("arch", "encoder"), [*EACH_ARCHITECTURE, *ENCODERS])
@pytest.mark.usefixtures("few_blocks")
def test_compiles_once_for_all_sizes(arch: str, encoder: str) -> None:
    model = build(arch, encoder).eval()
    images = [torch.rand(2, 3, 64, 96), torch.rand(2, 3, 128, 64)]
    graphs = 2 if encoder.endswith("tiny_sam") else 1  # SAM's windows are others
    dynamic = getattr(model.encoder, "_is_torch_compilable", True)
    if not dynamic:  # tables for one grid of tokens: compiled for a size at which the model was run
        images = images[:1]
    with torch.no_grad():
        expected = [model(image) for image in images]
        torch.compiler.reset()
        counter = CompileCounter()
        compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=dynamic)
        for image, output in zip(images, expected, strict=True):
            torch.testing.assert_close(compiled(image), output, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == graphs


@pytest.mark.parametrize(("arch", "encoder"), [case for case in EACH_ARCHITECTURE if case[0] != "segnet"])
@pytest.mark.usefixtures("few_blocks")
def test_a_step_under_autocast_compiles_once_for_all_sizes(arch: str, encoder: str) -> None:
    torch.compiler.reset()
    model, counter = build(arch, encoder).train(), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for image in torch.rand(2, 3, 64, 96), torch.rand(2, 3, 128, 64):
        with torch.autocast("cpu", torch.bfloat16):
            logits = compiled(image)
        logits.float().square().mean().backward()
    assert counter.frame_count == 1
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("arch", "encoder"), EACH_ARCHITECTURE)
@pytest.mark.usefixtures("few_blocks")
def test_a_compiled_graph_is_all_on_the_gpu(arch: str, encoder: str) -> None:
    """As CUDA graphs, `mode="reduce-overhead"`, ask: no tensor of the host, and no break to wait for one."""
    devices: set[str] = set()

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        values = [*inputs, *(node.meta.get("example_value") for node in graph.graph.nodes)]
        devices.update(value.device.type for value in values if isinstance(value, torch.Tensor))
        return graph.forward

    torch.compiler.reset()
    model = build(arch, encoder).train()
    with gpu_counts.fake_gpu(model), torch.autocast("cuda", torch.bfloat16):
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        compiled(torch.empty(2, 3, 64, 96, device="cuda"))
    assert devices == {"cuda"}


@pytest.mark.parametrize(("arch", "encoder"), [*EACH_ARCHITECTURE, *ENCODERS])
@pytest.mark.usefixtures("few_blocks")
def test_exports_for_any_batch(arch: str, encoder: str) -> None:
    model, image = build(arch, encoder).eval(), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        model(image)  # tables of relative positions are exported for the size that they were used at
        any_batch = ({0: torch.export.Dim.AUTO},)
        exported = torch.export.export(model, (image,), dynamic_shapes=any_batch, strict=False).module()
        for images in (image, torch.rand(3, 3, 64, 96)):
            torch.testing.assert_close(exported(images), model(images), rtol=1e-4, atol=1e-4)


@each_model
def test_saves_and_loads(arch: str, encoder: str, tmp_path) -> None:
    model = build(arch, encoder, in_channels=4, classes=5).eval()
    for name, buffer in model.named_buffers():  # statistics that a new model has not
        if name in model.state_dict() and buffer.is_floating_point():
            buffer.uniform_(0.5, 1)
    model.save_pretrained(tmp_path / "folder")
    path = vitseg_zoo.save_model(model, tmp_path / "model.safetensors")
    copies = [
        smp.from_pretrained(tmp_path / "folder"),
        vitseg_zoo.load_model(path)[0],
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ]
    image = torch.rand(1, 4, 64, 96)
    with torch.no_grad():
        expected = model(image)
        for copied in copies:
            assert type(copied) is type(model) and torch.equal(copied.eval()(image), expected)


@each_model
def test_is_scripted_or_refuses_it_in_one_sentence(arch: str, encoder: str) -> None:
    model, image = build(arch, encoder).eval(), torch.rand(1, 3, 64, 96)
    if any(isinstance(module, NotScriptable) for module in model.modules()):
        with pytest.raises(
            RuntimeError, match=r"^\w+ cannot be scripted: use torch.export or torch.compile.$"
        ):
            torch.jit.script(model)
    else:
        torch.testing.assert_close(torch.jit.script(model)(image), model(image))
