"""What a rebuilt encoder keeps: all but what it was rebuilt for."""

import pytest
import segmentation_models_pytorch as smp
import tiny_vits  # noqa: F401  registers models
import torch

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
