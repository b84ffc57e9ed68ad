"""MiT as an encoder of SMP's decoders."""

import copy

import pytest
import segmentation_models_pytorch as smp
import torch

from vitseg_zoo.encoders.mix_checkpoints import convert_to_smp

DECODERS = [
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus",
    "UPerNet", "Segformer",
]  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_but_dpt(name: str) -> None:
    model = getattr(smp, name)("vz-mit_b0", encoder_weights=None, classes=4, in_channels=2)
    model.train()
    size = 128 if name == "PAN" else 64
    logits = model(torch.randn(2, 2, size, 2 * size))
    assert logits.shape == (2, 4, size, 2 * size)
    logits.mean().backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    # PSPNet reads one level; what comes after it has no gradient. SMP's own encoders are the same there.
    assert not missing or name in ("PSPNet", "Linknet")


@pytest.mark.parametrize("depth", [3, 4, 5])
@pytest.mark.parametrize("in_channels", [1, 3, 6])
def test_levels(depth: int, in_channels: int) -> None:
    encoder = smp.encoders.get_encoder("vz-mit_b0", in_channels=in_channels, depth=depth, weights=None)
    x = torch.randn(1, in_channels, 64, 96)
    levels = encoder(x)
    assert len(levels) == depth + 1 and torch.equal(levels[0], x)
    assert [level.shape[1] for level in levels] == encoder.out_channels
    assert [level.shape[2] for level in levels] == [64 // 2**i for i in range(depth + 1)]
    assert encoder.output_stride == 2**depth


def test_stride_2_holds_every_pixel() -> None:
    encoder = smp.encoders.get_encoder("vz-mit_b0", weights=None)
    x = torch.randn(1, 3, 32, 64)
    assert torch.equal(torch.pixel_shuffle(encoder(x)[1], 2), x)


def test_segformer_has_no_level_at_stride_2() -> None:
    encoder = smp.FusedSegformer("vz-mit_b0", encoder_weights=None, in_channels=4).encoder
    assert encoder.out_channels == [4, 0, 32, 64, 160, 256]  # as SMP's mit_b0
    assert encoder(torch.randn(1, 4, 63, 64))[1].shape == (1, 0, 32, 32)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride(output_stride: int) -> None:
    encoder = smp.encoders.get_encoder("vz-mit_b0", in_channels=4, weights=None, output_stride=output_stride)
    assert encoder.output_stride == output_stride
    assert [f.shape[2] for f in encoder(torch.randn(1, 4, 64, 64))][-1] == 64 // output_stride


def test_loads_smp_names_at_every_depth_and_goes_back() -> None:
    peer = smp.encoders.get_encoder("mit_b0", weights=None).eval()
    x = torch.randn(1, 3, 64, 64)
    for depth in (3, 5):
        encoder = smp.encoders.get_encoder("vz-mit_b0", depth=depth, weights=None).eval()
        encoder = copy.deepcopy(encoder)  # the conversion is a hook, which has to follow the copy
        encoder.load_state_dict(peer.state_dict())
        for own, expected in zip(encoder(x)[2:], peer(x)[2:], strict=False):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    back = convert_to_smp({f"encoder.{key}": value for key, value in encoder.state_dict().items()})
    expected = peer.state_dict()
    assert {key.removeprefix("encoder.") for key in back} == set(expected)
    assert all(torch.equal(value, expected[key.removeprefix("encoder.")]) for key, value in back.items())


@pytest.mark.parametrize("in_channels", [1, 6])
def test_weights_follow_the_number_of_channels(in_channels: int) -> None:
    encoder = smp.encoders.get_encoder("vz-mit_b0", weights=None).eval()
    gray = torch.randn(1, 1, 64, 64)
    expected = encoder(gray.expand(-1, 3, -1, -1))[2:]
    encoder.set_in_channels(in_channels, pretrained=True)
    encoder.eval()
    # Summed over the colors, or repeated and scaled: a gray image gives what it gave.
    for a, b in zip(encoder(gray.expand(-1, in_channels, -1, -1))[2:], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert encoder.out_channels[:2] == [in_channels, 4 * in_channels]


def test_configured_and_checkpointed() -> None:
    """What SMP has no arguments for: the model is made anew, and all else stays as it was."""
    model = smp.DeepLabV3Plus("vz-mit_b0", encoder_weights=None, in_channels=4, classes=3).double().eval()
    x = torch.rand(1, 4, 64, 64, dtype=torch.float64)
    expected = model(x)
    expected.mean().backward()
    gradients = [p.grad for p in model.parameters()]
    model.encoder.configure(drop_path_rate=0.3)
    model.encoder.set_grad_checkpointing()
    assert not model.encoder.model.training
    assert model.encoder.model.stages[3].blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    model.zero_grad()
    output = model(x)
    torch.testing.assert_close(output, expected)
    output.mean().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients)


def test_wrong_weights_are_reported() -> None:
    encoder = smp.encoders.get_encoder("vz-mit_b0", weights=None)
    with pytest.raises(RuntimeError, match="some_other_key"):
        encoder.load_state_dict({**encoder.state_dict(), "some_other_key": torch.zeros(1)})
    with pytest.raises(ValueError, match="depth"):
        smp.encoders.get_encoder("vz-mit_b0", depth=6, weights=None)
