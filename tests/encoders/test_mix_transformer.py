"""MiT against SMP's, Hugging Face's and timm's networks of the same weights, and as a timm model."""

from functools import partial
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file
from timm.models import get_notrace_functions, get_notrace_modules
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from vitseg_zoo.encoders.mix_checkpoints import checkpoint_filter_fn
from vitseg_zoo.ops import mix_ffn

DEPTHS = [(2, 2, 2, 2), (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 18, 3), (3, 8, 27, 3), (3, 6, 40, 3)]


def features(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return model.eval()(x)


def largest_difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    assert [t.shape for t in a] == [t.shape for t in b]
    return max((s - t).abs().max().item() for s, t in zip(a, b, strict=True))


def maps_of(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What a model of any library gives: the maps of its stages, and class logits if it has them."""
    if hasattr(model, "forward_intermediates"):  # timm's, and ours
        last, maps = model.forward_intermediates(x)
        return [*maps, model.forward_head(last)] if model.num_classes else maps
    if hasattr(model, "out_channels"):  # SMP's
        return model(x)[2:]
    output = model(x, output_hidden_states=True)
    classifies = type(model).__name__ == "SegformerForImageClassification"
    return [*output.hidden_states, output.logits] if classifies else [*output.hidden_states]


def assert_equal_in_both_precisions(own: nn.Module, peer: nn.Module, *size: int) -> None:
    own.load_state_dict(checkpoint_filter_fn(peer.state_dict(), own))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        x = torch.randn(1, 3, *size, dtype=dtype)
        with torch.no_grad():
            maps = [maps_of(model.to(dtype).eval(), x) for model in (own, peer)]
        assert largest_difference(*maps) < tolerance


@pytest.mark.parametrize("size", range(3))
def test_equals_smp_and_timm(size: int) -> None:
    mit = timm.create_model(f"mit_b{size}", num_classes=0)
    assert_equal_in_both_precisions(mit, smp.encoders.get_encoder(f"mit_b{size}", weights=None), 32, 64)
    pvt = timm.create_model(f"mit_pvt_b{size}")
    assert_equal_in_both_precisions(pvt, timm.create_model(f"pvt_v2_b{size}"), 32, 64)


@pytest.mark.parametrize("size", range(3, 6))
def test_larger_ones_have_the_parameters_of_timm(size: int) -> None:
    """As many blocks of the same widths; those of MiT are compared with Hugging Face's at all sizes."""
    pvt, theirs = (timm.create_model(f"{name}_b{size}") for name in ("mit_pvt", "pvt_v2"))
    shapes = [sorted(tuple(p.shape) for p in model.parameters()) for model in (pvt, theirs)]
    assert shapes[0] == shapes[1]


def test_equals_timm_with_the_ratios_of_mit() -> None:
    peer = timm.create_model("pvt_v2_b0", mlp_ratios=(4, 4, 4, 4), num_classes=5)
    assert_equal_in_both_precisions(timm.create_model("mit_b0", num_classes=5), peer, 96, 64)


@pytest.mark.parametrize("size", range(6))
@pytest.mark.parametrize("kind", ["Model", "ForImageClassification", "ForSemanticSegmentation"])
def test_equals_hugging_face(kind: str, size: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    dims = (32, 64, 160, 256)  # of B0 in all: it is the depths that make the names differ
    config = transformers.SegformerConfig(depths=DEPTHS[size], hidden_sizes=dims, num_labels=7)
    peer = getattr(transformers, f"Segformer{kind}")(config)
    own = timm.create_model(
        f"mit_b{size}",
        num_classes=7 if kind == "ForImageClassification" else 0,
        embed_dims=dims,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )
    assert_equal_in_both_precisions(own, peer, 64, 32)
    if size == 0:  # files keep the names that there were before transformers 5
        peer.save_pretrained(tmp_path)
        saved = checkpoint_filter_fn(load_file(tmp_path / "model.safetensors"), own)
        assert saved.keys() == own.state_dict().keys()
        assert all(torch.equal(value, own.state_dict()[key]) for key, value in saved.items())


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 5, "in_chans": 1}, {"features_only": True}])
def test_pretrained_goes_through_the_converter(kwargs: dict, tmp_path: Path) -> None:
    peer = smp.encoders.get_encoder("mit_b0", weights=None)
    weights = peer.state_dict() | {"head.weight": torch.rand(1000, 256), "head.bias": torch.rand(1000)}
    torch.save(weights, tmp_path / "mit_b0.pth")
    model = timm.create_model(
        "mit_b0", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "mit_b0.pth")}, **kwargs
    )
    x = torch.rand(1, 1, 64, 32)  # gray, for which the weights of colors are added up
    images = [x.expand(-1, channels, -1, -1) for channels in (kwargs.get("in_chans", 3), 3)]
    with torch.no_grad():
        expected = peer.eval()(images[1])[2:]
        own = model.eval()
        maps = own(images[0]) if "features_only" in kwargs else own.forward_intermediates(images[0])[1]
    assert largest_difference(maps, expected) < 1e-4
    if not kwargs:
        assert torch.equal(model.head.weight, weights["head.weight"])


def test_gradients_equal_smp() -> None:
    peer = smp.encoders.get_encoder("mit_b0", weights=None).double().eval()
    model = timm.create_model("mit_b0", num_classes=0).double().eval()
    model.load_state_dict(checkpoint_filter_fn(peer.state_dict(), model))
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    weights = [torch.randn_like(level) for level in features(peer, x)[2:]]
    for levels in (peer(x)[2:], model.forward_intermediates(x, intermediates_only=True)):
        sum((w * level).sum() for w, level in zip(weights, levels, strict=True)).backward()
    expected = checkpoint_filter_fn({name: p.grad for name, p in peer.named_parameters()}, model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-10)


def test_strips_and_pointwise_convolutions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("mit_b0", features_only=True)
    x = torch.randn(2, 3, 200, 136)
    expected = [f.float() for f in features(model.double(), x.double())]
    monkeypatch.setattr(mix_ffn, "_STRIP_ELEMENTS", 1)
    assert largest_difference(features(model.float(), x), expected) < 1e-4


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_keeps_what_strides_compute(output_stride: int) -> None:
    model = timm.create_model("mit_b0", num_classes=0).double().eval()
    dilated = timm.create_model("mit_b0", num_classes=0, output_stride=output_stride).double().eval()
    dilated.load_state_dict(model.state_dict())
    assert [info["reduction"] for info in dilated.feature_info][-1] == output_stride
    x = torch.randn(1, 3, 96, 136, dtype=torch.float64)
    with torch.no_grad():
        plain = model.forward_intermediates(x, intermediates_only=True)
        dense = dilated.forward_intermediates(x, intermediates_only=True)
    for i, (a, b) in enumerate(zip(plain, dense, strict=True)):
        step = max(1, 4 * 2**i // output_stride)
        torch.testing.assert_close(a, b[..., ::step, ::step], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 1), (7, 30), (33, 65), (224, 96)])
def test_any_size(shape: tuple[int, int]) -> None:
    model = timm.create_model("mit_b0", features_only=True)
    maps = features(model, torch.randn(1, 3, *shape))
    assert [f.shape[2:] for f in maps] == [tuple(-(-n // s) for n in shape) for s in (4, 8, 16, 32)]
    assert all(f.isfinite().all() for f in maps)


def test_what_timm_asks_of_a_model() -> None:
    model = timm.create_model("mit_b0", num_classes=42, in_chans=5, drop_path_rate=0.1).train()
    model(torch.randn(2, 5, 64, 64)).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    cfg, state_dict = model.default_cfg, model.state_dict()
    assert f"{cfg['classifier']}.weight" in state_dict and f"{cfg['first_conv']}.weight" in state_dict
    model = timm.create_model("mit_b0").eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert model(x).shape == (1, 1000)
        assert model.forward_features(x).shape[2:] == model.default_cfg["pool_size"]
        model.reset_classifier(0)
        assert model(x).shape == (1, model.num_features)
        model.reset_classifier(0, "")
        assert model(x).shape == (1, 256, 7, 7)
        last, maps = model.forward_intermediates(x, indices=[0, 2])
        assert [f.shape[1] for f in maps] == [32, 160] and last.shape[1] == 256
        assert model.prune_intermediate_layers([0, 1]) == [0, 1]
        assert model(x).shape == (1, 64, 28, 28)
    names = timm.list_models("mit_*")
    assert {f"mit_b{i}" for i in range(6)} | {f"mit_pvt_b{i}" for i in range(6)} <= set(names)


def test_gradient_checkpointing_gives_equal_gradients() -> None:
    model = timm.create_model("mit_b0", num_classes=3)
    x = torch.randn(1, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_is_traced_by_fx_and_refuses_to_be_scripted() -> None:
    """Also with timm's options; `torch.jit.script` says what to use, but takes what fx has traced."""
    model = timm.create_model("mit_b0", depths=(1, 1, 1, 1), num_classes=3).eval()
    leaves, functions = get_notrace_modules(), get_notrace_functions()
    options = dict(leaf_modules=leaves, autowrap_functions=functions, param_shapes_constant=True)
    extractor = create_feature_extractor(model, return_nodes=["head"], tracer_kwargs=options)
    traced = torch.fx.symbolic_trace(model)
    scripted = torch.jit.script(traced)
    with torch.no_grad():
        for x in (torch.randn(2, 3, 96, 64), torch.randn(1, 3, 33, 50)):  # maps smaller than the reduction
            for output in (traced(x), scripted(x), extractor(x)["head"]):
                torch.testing.assert_close(output, model(x), rtol=0, atol=1e-5)
    for module in (model, nn.Sequential(model)):
        with pytest.raises(RuntimeError, match="MixTransformer cannot be scripted: use torch"):
            torch.jit.script(module)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"output_stride": 4}, "stride"),
        ({"global_pool": "max"}, "global_pool"),
        ({"num_heads": (3,) * 4}, "heads"),
    ],
)
def test_errors(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("mit_b0", **kwargs)
