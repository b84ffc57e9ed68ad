"""accelerate(): models of SMP, Hugging Face and timm stay what they were, but for their speed."""

import copy
import pickle
import re
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call

import vitseg_zoo
from vitseg_zoo.acceleration import smp_segformer, timm_pvt_v2, transformers_segformer
from vitseg_zoo.decoders import segformer

transformers = pytest.importorskip("transformers")


def hf_config(**kwargs) -> transformers.SegformerConfig:
    return transformers.SegformerConfig(num_labels=5, depths=[1, 1, 2, 1], **kwargs)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "smp.Segformer": lambda: smp.Segformer("mit_b0", encoder_weights=None, classes=5),
    "smp.Segformer depth 3": lambda: smp.Segformer(
        "mit_b0", encoder_depth=3, encoder_weights=None, in_channels=4
    ),
    "smp.Segformer resnet": lambda: smp.Segformer("resnet18", encoder_weights=None, classes=5),
    "smp.FPN": lambda: smp.FPN("mit_b0", encoder_weights=None, classes=5),
    "smp.Unet tu-": lambda: smp.Unet("tu-pvt_v2_b0", encoder_weights=None, classes=5),
    "transformers segmentation": lambda: transformers.SegformerForSemanticSegmentation(hf_config()),
    "transformers classification": lambda: transformers.SegformerForImageClassification(hf_config()),
    "timm": lambda: timm.create_model("pvt_v2_b0", num_classes=5),
    "timm linear": lambda: timm.create_model("pvt_v2_b2_li", depths=(1, 1, 1, 1), num_classes=5),
}


def randomized(model: nn.Module) -> nn.Module:
    """Statistics and biases that a mistake would show; no dropout, whose draws depend on the layout."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, std=0.1)
        for rate in ("p", "drop_prob"):
            if hasattr(module, rate):
                setattr(module, rate, 0.0)
    return model.eval()


def image_for(model: nn.Module) -> torch.Tensor:
    return torch.rand(
        2, 4 if getattr(model, "encoder", None) and model.encoder.out_channels[0] == 4 else 3, 64, 96
    )


def tensor(output: torch.Tensor | dict) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output["logits"]


@pytest.fixture
def fast_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    calls: Counter[str] = Counter()
    for module in (smp_segformer, timm_pvt_v2, transformers_segformer, segformer):
        for name in {"mix_attention", "mix_ffn", "fused_head"} & vars(module).keys():
            fast = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, n=name, f=fast, **k: calls.update([n]) or f(*a, **k))
    return calls


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_state_dict_stay(
    name: str, caplog: pytest.LogCaptureFixture, fast_calls: Counter[str]
) -> None:
    model = randomized(MODELS[name]())
    with caplog.at_level("INFO", "vitseg_zoo"):
        fast = vitseg_zoo.accelerate(copy.deepcopy(model))
    replaced, fast_parts = caplog.messages
    assert replaced.startswith("replaced ") and fast_parts.endswith(" parts run fast")
    all_parts = re.match(r"(\d+) of (\d+)", fast_parts)
    assert all_parts[1] == all_parts[2]
    image = image_for(model)
    with torch.no_grad():
        expected, actual = model(image), fast(image)
    blocks = sum(type(module).__name__ in ("FastBlock", "FastSegformerLayer") for module in fast.modules())
    blocks //= 2 if name == "smp.Segformer depth 3" else 1  # SMP keeps the stages that it leaves out
    heads = sum(type(module).__name__.startswith("FastSegformerDecode") for module in fast.modules())
    assert fast_calls == Counter(mix_attention=blocks, mix_ffn=blocks, fused_head=heads)
    assert type(actual) is type(expected)
    torch.testing.assert_close(tensor(actual), tensor(expected), atol=1e-4, rtol=1e-4)
    before, after = model.state_dict(), fast.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    "name", ["smp.Segformer", "smp.Segformer resnet", "transformers segmentation", "timm", "timm linear"]
)
def test_gradients_and_batch_statistics_stay(name: str) -> None:
    model = randomized(MODELS[name]()).double().train()
    fast = vitseg_zoo.accelerate(copy.deepcopy(model))
    image = image_for(model).double()
    gradients = []
    for variant in (model, fast):
        tensor(variant(image)).square().mean().backward()
        gradients.append({key: parameter.grad for key, parameter in variant.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, atol=1e-10, rtol=1e-8, msg=key)
    for (key, before), after in zip(model.named_buffers(), fast.buffers(), strict=True):
        torch.testing.assert_close(after, before, atol=1e-10, rtol=1e-10, msg=key)


@pytest.mark.parametrize("depth", [1, 2, 4, 5])
def test_smp_levels_stay(depth: int) -> None:
    encoder = smp.encoders.get_encoder("mit_b0", depth=depth, weights=None).eval()
    image = torch.rand(1, 3, 65, 70)
    with torch.no_grad():
        expected = encoder(image)
        actual = vitseg_zoo.accelerate(encoder)(image)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"output_hidden_states": True}, {"return_dict": False}])
def test_transformers_outputs_stay(options: dict) -> None:
    model = randomized(transformers.SegformerModel(hf_config()))
    fast = vitseg_zoo.accelerate(copy.deepcopy(model))
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, actual = model(image, **options), fast(image, **options)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_transformers_attentions_are_there() -> None:
    model = randomized(transformers.SegformerForSemanticSegmentation(hf_config(attn_implementation="eager")))
    fast = vitseg_zoo.accelerate(copy.deepcopy(model))
    with torch.no_grad():
        expected, actual = (m(torch.ones(1, 3, 64, 64), output_attentions=True) for m in (model, fast))
    assert len(actual.attentions) == 5
    torch.testing.assert_close(actual.attentions, expected.attentions, atol=1e-4, rtol=1e-4)


def test_transformers_last_stage_as_tokens() -> None:
    model = randomized(transformers.SegformerModel(hf_config(reshape_last_stage=False)))
    fast = vitseg_zoo.accelerate(copy.deepcopy(model))
    with torch.no_grad():
        expected, actual = (m(torch.ones(1, 3, 64, 96)).last_hidden_state for m in (model, fast))
    assert actual.ndim == 3
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_model_is_copied_pickled_and_saved(tmp_path) -> None:
    model = vitseg_zoo.accelerate(randomized(MODELS["smp.Segformer"]()))
    image = torch.rand(1, 3, 64, 64)
    model.save_pretrained(tmp_path / "smp")
    with torch.no_grad():
        expected = model(image)
        for other in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            smp.from_pretrained(tmp_path / "smp").eval(),
        ):
            torch.testing.assert_close(other(image), expected, atol=1e-4, rtol=1e-4)


def test_transformers_model_is_saved(tmp_path) -> None:
    model = vitseg_zoo.accelerate(randomized(MODELS["transformers segmentation"]()))
    model.save_pretrained(tmp_path)
    again = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(image).logits, model(image).logits, atol=1e-4, rtol=1e-4)


def test_new_weights_are_used_at_once() -> None:
    model = vitseg_zoo.accelerate(randomized(MODELS["smp.Segformer"]()))
    other = randomized(MODELS["smp.Segformer"]())
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        model(image)
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model(image), other(image), atol=1e-4, rtol=1e-4)
        for target, source in zip(model.parameters(), other.parameters(), strict=True):
            target.data.mul_(0.5), source.data.mul_(0.5)
        torch.testing.assert_close(model(image), other(image), atol=1e-4, rtol=1e-4)


class Adapter(nn.Module):
    """What LoRA does to a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.extra = base, nn.Linear(base.in_features, base.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.extra(x)


def test_adapters_and_hooks_on_layers_are_respected() -> None:
    model = randomized(MODELS["smp.Segformer"]())
    block = model.encoder.block1[0]
    block.attn.q, block.mlp.fc1 = Adapter(block.attn.q), Adapter(block.mlp.fc1)
    model.decoder.mlp_stage[0].linear = Adapter(model.decoder.mlp_stage[0].linear)
    model.decoder.mlp_stage[1].linear.register_forward_hook(lambda module, inputs, output: output + 1)
    block.attn.kv.register_forward_hook(lambda module, inputs, output: output * 2)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        torch.testing.assert_close(vitseg_zoo.accelerate(model)(image), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name, attention, mlp",
    [
        ("smp.Segformer", "encoder.block1.1.attn", "encoder.block3.0.mlp"),
        ("timm", "stages.0.blocks.1.attn", "stages.2.blocks.0.mlp"),
        (
            "transformers segmentation",
            "segformer.stages.0.blocks.0.attention",
            "segformer.stages.2.blocks.0.mlp",
        ),
    ],
)
def test_hooks_on_the_halves_of_a_block_are_called(name: str, attention: str, mlp: str) -> None:
    model = randomized(MODELS[name]())
    image, calls = torch.rand(1, 3, 64, 96), []
    expected = tensor(model(image))
    for part in (attention, mlp):
        model.get_submodule(part).register_forward_hook(lambda *args, part=part: calls.append(part))
    torch.testing.assert_close(tensor(vitseg_zoo.accelerate(model)(image)), expected, atol=1e-4, rtol=1e-4)
    assert calls == [attention, mlp]


@pytest.mark.parametrize("name", ["smp.Segformer", "timm", "transformers segmentation"])
def test_layers_stay_what_quantization_looks_for(name: str) -> None:
    model = vitseg_zoo.accelerate(MODELS[name]())
    assert {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == {nn.Linear}


@pytest.mark.parametrize("name", ["smp.Segformer", "timm", "transformers segmentation"])
def test_function_transforms_and_forward_mode(name: str) -> None:
    model = vitseg_zoo.accelerate(randomized(MODELS[name]()).double())
    image, direction = torch.rand(2, 3, 64, 96).double(), torch.randn(2, 3, 64, 96).double()
    parameters = {key: value.detach() for key, value in model.named_parameters()}
    buffers = {key: value.clone() for key, value in model.named_buffers()}

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor = image) -> torch.Tensor:
        return tensor(functional_call(model, (parameters, dict(buffers)), (image,))).square().mean()

    loss(dict(model.named_parameters())).backward()
    for key, gradient in torch.func.grad(loss)(parameters).items():
        torch.testing.assert_close(gradient, model.get_parameter(key).grad, atol=1e-10, rtol=1e-7)
    image.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(parameters, image), image)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the only one that has it
        _, tangent = torch.func.jvp(lambda image: loss(parameters, image), (image,), (direction,))
        with forward_ad.dual_level():
            dual = loss(parameters, forward_ad.make_dual(image, direction))
            dual_tangent = forward_ad.unpack_dual(dual).tangent
    for result in (tangent, dual_tangent):
        torch.testing.assert_close(result, (gradient * direction).sum())


@pytest.mark.parametrize("name", ["smp.Segformer", "transformers segmentation"])
def test_autocast_trains(name: str) -> None:
    model = vitseg_zoo.accelerate(MODELS[name]()).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = tensor(model(torch.rand(2, 3, 64, 64))).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["smp.Segformer", "timm"])
def test_graph_has_no_breaks(name: str) -> None:
    model = vitseg_zoo.accelerate(randomized(MODELS[name]()))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(image), model(image), atol=1e-4, rtol=1e-4)


def test_parts_that_stay_slow_are_logged_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    model = MODELS["smp.Segformer"]()
    model.decoder.fuse_stage[2] = nn.GELU()
    model.encoder.block2[1].attn.q.register_forward_hook(lambda *args: None)
    with caplog.at_level("INFO", "vitseg_zoo"):
        vitseg_zoo.accelerate(model)
    assert caplog.messages[1:] == [
        "11 of 13 parts run fast",
        "encoder.block2.1 runs as before: a hook on Linear",
        "decoder runs as before: GELU in place of ReLU",
    ]


def test_nothing_to_replace_is_a_warning() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.warns(UserWarning, match="nothing to replace in Sequential"):
        assert vitseg_zoo.accelerate(model) is model


def test_second_call_changes_nothing() -> None:
    model = vitseg_zoo.accelerate(MODELS["smp.Segformer"]())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vitseg_zoo.accelerate(model) is model


def test_parts_that_are_fast_already_do_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    model = MODELS["smp.Segformer"]()
    vitseg_zoo.accelerate(model.encoder)
    with caplog.at_level("INFO", "vitseg_zoo"):
        vitseg_zoo.accelerate(model)
    assert caplog.messages[0] == "replaced 1 Segformer, 1 SegformerDecoder"


def test_mmsegmentation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mmseg.models.decode_heads.segformer_head"
    module = types.ModuleType(name)
    module.SegformerHead = type("SegformerHead", (nn.Module,), {"__module__": name})
    monkeypatch.setitem(sys.modules, name, module)
    model = nn.ModuleDict({"backbone": timm.create_model("pvt_v2_b0"), "decode_head": module.SegformerHead()})
    before = [type(part) for part in model.modules()]
    with pytest.raises(ValueError, match="mmsegmentation"):
        vitseg_zoo.accelerate(model)
    assert [type(part) for part in model.modules()] == before


@pytest.mark.parametrize(
    "name", ["smp.Segformer", "smp.Segformer resnet", "transformers segmentation", "timm"]
)
def test_scripting_is_refused_in_one_sentence(name: str) -> None:
    model = vitseg_zoo.accelerate(MODELS[name]().eval())
    with pytest.raises(
        RuntimeError, match=r"^(Fast\w+|Segformer) cannot be scripted: use torch.export or torch.compile.$"
    ):
        torch.jit.script(model)
