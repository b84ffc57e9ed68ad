"""The timm model inside an encoder: what a rebuilt one keeps, and that its hooks see the call."""

import copy
import pickle
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import tiny_vits  # noqa: F401  registers models
import torch
from timm.models.vision_transformer import VisionTransformer

ENCODERS = ["vz-tiny_vit", "vz-shuffle-tiny_beit", "vz-mit_b0"]


def build(name: str, **kwargs) -> torch.nn.Module:
    return smp.encoders.get_encoder(name, weights=None, **kwargs)


def rebuild(encoder: torch.nn.Module, how: str) -> None:
    if how == "configure":
        encoder.configure(drop_path_rate=0.3)
    else:
        encoder.set_in_channels(4)


@pytest.mark.parametrize("how", ["configure", "set_in_channels"])
@pytest.mark.parametrize("name", ENCODERS)
def test_state_stays(name: str, how: str) -> None:
    encoder = build(name).double().eval()
    encoder.set_grad_checkpointing()
    frozen = [key for key, _ in encoder.model.named_parameters() if "blocks.0" in key]
    for key in frozen:
        encoder.model.get_parameter(key).requires_grad = False
    encoder.model.get_submodule(frozen[0].rpartition(".")[0]).train()
    modes = {key: module.training for key, module in encoder.model.named_modules()}
    before = encoder.model
    rebuild(encoder, how)
    assert encoder.model is not before and not encoder.training
    assert {key: module.training for key, module in encoder.model.named_modules()} == modes
    assert [key for key, p in encoder.model.named_parameters() if not p.requires_grad] == frozen
    assert {p.dtype for p in encoder.parameters()} == {torch.float64}
    assert any(getattr(module, "grad_checkpointing", False) for module in encoder.modules())
    image = torch.rand(2, encoder.out_channels[0], 64, 64, dtype=torch.float64)
    assert len(encoder(image)) == len(encoder.out_channels)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_failed_configuration_changes_nothing(name: str) -> None:
    encoder = build(name)
    before = encoder.model
    with pytest.raises(TypeError):
        encoder.configure(foo=1)
    assert encoder.model is before and encoder.configured == {}
    encoder.configure(drop_path_rate=0.3)
    assert encoder.configured == {"drop_path_rate": 0.3}


def test_weights_that_do_not_fit_change_nothing() -> None:
    for name, wrong in {"vz-tiny_vit": {"mlp_ratio": 2}, "vz-mit_b0": {"mlp_ratios": (2, 2, 2, 2)}}.items():
        encoder = build(name)
        before = encoder.model
        with pytest.raises(RuntimeError, match="size mismatch"):
            encoder.configure(**wrong)
        assert encoder.model is before and encoder.configured == {}


def test_dilation_stays() -> None:
    encoder = build("vz-mit_b0", output_stride=16)
    rebuild(encoder, "configure")
    rebuild(encoder, "set_in_channels")
    assert encoder.output_stride == 16 and encoder(torch.rand(1, 4, 64, 64))[-1].shape[2] == 4


def test_channels_may_change_again_and_again() -> None:
    for name in ENCODERS:
        encoder = build(name).eval()
        gray = torch.rand(1, 1, 64, 64)
        expected = encoder(gray.expand(-1, 3, -1, -1))[-1]
        for channels in (6, 3, 1, 3):
            encoder.set_in_channels(channels)
            output = encoder(gray.expand(-1, channels, -1, -1))[-1]
            torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Full backward hook")  # images need no gradient
@pytest.mark.parametrize(
    ("arch", "encoder"),
    [
        ("vitseg", "vz-tiny_vit"),
        ("vitseg", "vz-tiny_beit"),  # runs a copy at this size
        ("segmenter", "vz-tiny_vit"),
        ("segmenter", "vz-mit_b0"),
        ("eomt", "vz-tiny_eva"),
        ("unet", "vz-tiny_vit"),
        ("unet", "vz-mit_b0"),
        ("fusedsegformer", "vz-mit_b0"),
    ],
)
def test_hooks_see_the_timm_model(arch: str, encoder: str) -> None:
    """All kinds, Grad-CAM's backward one included, of a model as it is and of copies."""
    model = smp.create_model(arch, encoder, encoder_weights=None, classes=2)
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        image, calls = torch.rand(2, 3, 64, 96), {}
        vit = each.encoder.model
        vit.register_forward_pre_hook(lambda m, inputs, c=calls: c.update(image=inputs[0]))
        vit.register_forward_hook(lambda m, inputs, maps, c=calls: c.update(maps=maps))
        vit.register_full_backward_hook(lambda m, inputs, grads, c=calls: c.update(grads=grads))
        each(image).square().mean().backward()
        assert torch.equal(calls["image"], image)
        pairs = list(zip(calls["maps"], calls["grads"], strict=True))  # without a gradient: maps not in use
        assert any(grad is not None for _, grad in pairs)
        assert all(grad.shape == feature.shape for feature, grad in pairs if grad is not None)


def test_a_forward_hook_may_change_the_maps() -> None:
    model = smp.create_model("vitseg", "vz-tiny_vit", encoder_weights=None).eval()
    image = torch.rand(1, 3, 64, 64)
    before = model(image)
    handle = model.encoder.model.register_forward_hook(lambda m, inputs, maps: tuple(2 * x for x in maps))
    torch.compiler.reset()
    changed = torch.compile(model, backend="eager", fullgraph=True)(image)
    assert not torch.allclose(changed, before)
    torch.testing.assert_close(changed, model(image))
    handle.remove()
    assert torch.equal(model(image), before)


def test_the_timm_model_is_what_timm_makes() -> None:
    own = timm.create_model("tiny_vit", num_classes=0, dynamic_img_size=True)
    vit = smp.encoders.get_encoder("vz-tiny_vit", weights=None).model
    vit.load_state_dict(own.state_dict())
    assert isinstance(vit, VisionTransformer) and repr(vit) == repr(own)
    image = torch.rand(1, 3, 64, 64)
    # Called as it is, timm's forward pass; the encoder keeps no pooling.
    assert torch.equal(vit.eval()(image), own.eval().forward_features(image))
    again: Any = pickle.loads(pickle.dumps(vit))
    assert type(again) is type(vit) is type(copy.copy(vit))
    assert torch.equal(again.eval()(image), vit(image))
