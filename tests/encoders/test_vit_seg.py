"""ViT-seg's encoders with the habits of timm."""

import copy

import pytest
import timm
import torch
from timm.models import adapt_input_conv, get_notrace_functions
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names


@pytest.mark.parametrize("name", timm.list_models("vitseg*"))
def test_timm_forward_and_backward(name: str) -> None:
    model = timm.create_model(name, num_classes=42, embed_dim=48, depth=2, num_heads=2)
    output = model(torch.rand(2, 3, 128, 128))
    output.mean().backward()
    assert output.shape == (2, 42) and all(p.grad is not None for p in model.parameters())
    assert isinstance(model.get_classifier(), nn.Linear)
    model.reset_classifier(0)
    assert model(torch.rand(1, 3, 128, 128)).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    side = 128 // model.patch_embed.patch_size[0]
    assert model(torch.rand(1, 3, 128, 128)).shape == (1, side**2, 48)
    with pytest.raises(AssertionError):
        timm.create_model(name, global_pool="token")


def test_timm_default_cfg_and_parameter_groups() -> None:
    sizes = [f"vitseg_{size}_patch{side}_128" for size in ("base", "small", "tiny") for side in (8, 16)]
    assert timm.list_models("vitseg_[tsb]*") == sizes
    model = timm.create_model("vitseg_tiny_patch16_128")
    cfg = model.default_cfg
    assert cfg["classifier"] == "head" and cfg["first_conv"] == "patch_embed.proj"
    assert cfg["input_size"] == (3, 128, 128) and cfg["mean"] == (0, 0, 0) and cfg["std"] == (1, 1, 1)
    assert cfg["first_conv"] + ".weight" in model.state_dict()
    assert model.no_weight_decay() >= {"pos_embed"}
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher(coarse=False))
    grouped = {name for names in groups.values() for name in names}
    assert grouped == {name for name, _ in model.named_parameters()} and len(groups) == 14


def test_timm_features() -> None:
    image = torch.rand(1, 3, 128, 64)
    features_only = timm.create_model(
        "vitseg_tiny_patch16_128", features_only=True, out_indices=(0, 5, -1)
    ).eval()
    features = features_only(image)
    assert features_only.feature_info.reduction() == [16] * 3
    assert [tuple(f.shape) for f in features] == [(1, 192, 8, 4)] * 3
    model = timm.create_model("vitseg_tiny_patch16_128").eval()
    final, intermediates = model.forward_intermediates(image, indices=2, output_fmt="NLC")
    torch.testing.assert_close(final, model.forward_features(image))
    torch.testing.assert_close(intermediates[-1], final)
    torch.testing.assert_close(model.forward_head(final), model(image))
    model.prune_intermediate_layers(indices=1)
    assert model(image).shape == (1, 32, 192)


@pytest.mark.parametrize("in_chans", [1, 4, 13])
def test_timm_channels_and_sizes(in_chans: int) -> None:
    model = timm.create_model("vitseg_tiny_patch16_128", in_chans=in_chans, num_classes=5, depth=2).eval()
    for size in [(128, 128), (64, 96), (50, 33), (16, 16), (7, 200)]:
        assert model(torch.rand(1, in_chans, *size)).shape == (1, 5)


@pytest.mark.parametrize("strict", [False, True])
def test_timm_symbolic_trace_and_script(strict: bool) -> None:
    if torch.__version__.startswith("2.5."):
        pytest.skip("torch 2.5 traces no model with timm's attention")
    with timm.layers.set_scriptable(True):
        model = timm.create_model("vitseg_tiny_patch16_128", depth=2, dynamic_img_size=not strict).eval()
    tracer = {"autowrap_functions": get_notrace_functions(), "param_shapes_constant": True}
    output = get_graph_node_names(model, tracer_kwargs=tracer)[1][-1]
    traced = create_feature_extractor(model, [output], tracer_kwargs=tracer)
    image = torch.rand(1, 3, 128, 128)
    for other in (lambda x: traced(x)[output], torch.jit.script(model)):
        torch.testing.assert_close(other(image), model(image))
        if strict:
            with pytest.raises((AssertionError, torch.jit.Error), match="Input height"):
                other(torch.rand(1, 3, 96, 128))


def test_timm_gradient_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vitseg_tiny_patch16_128", num_classes=3, depth=3, attn_drop_rate=0, proj_drop_rate=0
    )
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    image = torch.rand(2, 3, 64, 64)
    for m in (model, other):
        m(image).sum().backward()
    for (key, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=key)


def test_timm_input_size_can_be_set() -> None:
    model = timm.create_model("vitseg_tiny_patch16_128", depth=1, num_classes=0).eval()
    image = torch.rand(1, 3, 96, 160)
    before = model.forward_features(image)
    model.set_input_size((96, 160))
    torch.testing.assert_close(model.forward_features(image), before)
    model.set_input_size((96, 160), patch_size=(8, 8))
    assert model.forward_features(image).shape == (1, 240, 192)


@pytest.mark.parametrize("in_chans", [1, 5])
def test_timm_loads_weights_for_other_channels_and_sizes(in_chans: int, tmp_path) -> None:
    model = timm.create_model("vitseg_tiny_patch16_128", depth=1, num_classes=3)
    model(torch.rand(2, 3, 128, 128))  # the norm learns its statistics
    torch.save(model.state_dict(), tmp_path / "trained.pth")
    overlay = {"file": str(tmp_path / "trained.pth"), "num_classes": 3}
    loaded = timm.create_model(
        "vitseg_tiny_patch16_128",
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        in_chans=in_chans,
        img_size=(64, 96),
        depth=1,
        num_classes=3,
    )
    mean = model.patch_embed.input_norm.running_mean
    assert loaded.patch_embed.input_norm.running_mean.tolist() == [
        mean[i % 3].item() for i in range(in_chans)
    ]
    expected = adapt_input_conv(in_chans, model.patch_embed.proj.weight)
    torch.testing.assert_close(loaded.patch_embed.proj.weight, expected)
    assert loaded.pos_embed.shape == (1, 4 * 6, 192) and torch.equal(loaded.head.weight, model.head.weight)


def test_timm_patches_are_squares() -> None:
    with pytest.raises(ValueError, match="patch_size should be a square"):
        timm.create_model("vitseg_tiny_patch16_128", patch_size=(8, 16))


def test_timm_pads_with_the_mean_image() -> None:
    model = timm.create_model("vitseg_tiny_patch16_128", depth=1, num_classes=0).eval()
    image = torch.rand(1, 3, 20, 16)
    padded = torch.zeros(1, 3, 32, 16)  # the running mean of an untrained batch norm is zero
    padded[:, :, :20] = image
    torch.testing.assert_close(model(image), model(padded))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vitseg_tiny_patch16_128", "mit_b0"])
def test_hooks_on_the_first_convolution_are_called(name: str) -> None:
    model = timm.create_model(name).eval()
    calls: list[int] = []
    model.get_submodule(model.default_cfg["first_conv"]).register_forward_hook(lambda *args: calls.append(1))
    model(torch.rand(1, 3, *model.default_cfg["input_size"][1:]))
    assert calls == [1]
