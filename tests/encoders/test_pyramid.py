"""timm's ViTs in SMP's decoders: levels, strides, sizes, and what SMP's own encoder tests ask."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from tiny_vits import FAMILIES
from torch import nn

from vitseg_zoo.encoders.pyramid import PyramidEncoder, SimpleFeaturePyramidEncoder

DECODERS = [
    smp.Unet, smp.UnetPlusPlus, smp.MAnet, smp.Linknet, smp.FPN, smp.PSPNet, smp.PAN, smp.DeepLabV3,
    smp.DeepLabV3Plus, smp.UPerNet, smp.Segformer,
]  # fmt: skip


@pytest.mark.parametrize("encoder_class", [PyramidEncoder, SimpleFeaturePyramidEncoder])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_levels_have_smps_strides(encoder_class: type, name: str, depth: int) -> None:
    encoder = encoder_class(name, depth=depth).eval()
    assert encoder.output_stride == 2**depth
    with torch.no_grad():
        for height, width in [(64, 96), (96, 32)]:
            features = encoder(torch.randn(1, 3, height, width))
            assert [feature.shape[1] for feature in features] == encoder.out_channels
            sizes = [tuple(feature.shape[2:]) for feature in features]
            assert sizes == [(height >> level, width >> level) for level in range(depth + 1)]


@pytest.mark.parametrize("patch_size", [8, 14, 16, 32])
def test_every_patch_size_gives_the_same_strides(patch_size: int) -> None:
    for encoder_class in (PyramidEncoder, SimpleFeaturePyramidEncoder):
        encoder = encoder_class("tiny_vit", patch_size=patch_size, img_size=2 * patch_size, embed_dim=48)
        sizes = [tuple(feature.shape[2:]) for feature in encoder(torch.randn(1, 3, 64, 96))]
        assert sizes == [(64 >> level, 96 >> level) for level in range(6)]


def test_levels_are_timms_features_rearranged() -> None:
    encoder = PyramidEncoder("tiny_vit").eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        levels = encoder(image)
        maps = encoder.model.forward_intermediates(image, indices=5, norm=True, intermediates_only=True)
    assert levels[0] is image
    torch.testing.assert_close(levels[4], maps[3])  # the patches' own stride
    torch.testing.assert_close(levels[5], maps[4].reshape(2, 64, 2, 2, 2, 2).mean((3, 5)))
    # Stride 8 has a quarter of the channels: four channels of a token become the four corners of its patch.
    torch.testing.assert_close(levels[3][:, :, 1::2, ::2], maps[2][:, 2::4])
    assert sum(parameter.numel() for parameter in encoder.parameters()) == sum(
        parameter.numel() for parameter in timm.create_model("tiny_vit", num_classes=0).parameters()
    )


def test_learned_levels_are_transposed_convolutions() -> None:
    """Computed cell by cell, they are what PyTorch's layers and timm's norm of maps make."""
    encoder = SimpleFeaturePyramidEncoder("tiny_vit").eval()
    for ups, level in ((3, encoder.levels[0]), (1, encoder.levels[2]), (0, encoder.levels[4])):
        layers: list[nn.Module] = []
        for layer in level:
            if isinstance(layer, nn.ConvTranspose2d):
                layers.append(nn.ConvTranspose2d(layer.in_channels, layer.out_channels, 2, stride=2))
            elif isinstance(layer, nn.Conv2d):
                size = layer.kernel_size[0]
                conv = nn.Conv2d(layer.in_channels, layer.out_channels, size, padding=size // 2, bias=False)
                layers.append(conv)
            else:
                layers.append(LayerNorm2d(*layer.normalized_shape) if hasattr(layer, "eps") else nn.GELU())
        plain = nn.Sequential(*layers)
        plain.load_state_dict(level.state_dict())
        x = torch.randn(2, 64, 3, 5)
        assert level(x).shape[2:] == (3 << ups, 5 << ups)
        torch.testing.assert_close(level(x), plain(x))


@pytest.mark.parametrize("way", ["", "shuffle-", "detail-"])
def test_levels_are_channels_last_and_of_autocasts_type(way: str) -> None:
    encoder = smp.encoders.get_encoder(f"vz-{way}tiny_vit", weights=None).eval()
    image = torch.rand(2, 3, 64, 96).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        levels = encoder(image)
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in levels)
    assert {level.dtype for level in levels[1:]} == {torch.bfloat16}


def test_levels_read_blocks_spread_over_the_depth() -> None:
    assert PyramidEncoder("vitseg_tiny_patch16_128")._level_blocks(12) == [2, 4, 7, 9, 11]
    assert PyramidEncoder("vitseg_tiny_patch16_128", depth=3)._level_blocks(12) == [3, 7, 11]


def test_patches_of_14_pixels_stay_where_they_are_in_the_image() -> None:
    encoder = PyramidEncoder("tiny_eva")
    # Tokens that hold the middle of their patch, in pixels from the left, for an image of 16 x 224.
    middles = 14 * torch.arange(16.0) + 7
    grid = encoder._resample_to_grid(middles.view(1, 1, 1, 16).expand(1, 1, 2, 16), height=16, width=224)
    assert grid.shape == (1, 1, 1, 14)
    torch.testing.assert_close(grid[0, 0, 0, 1:-1], (16 * torch.arange(14.0) + 8)[1:-1])


@pytest.mark.parametrize("encoder_class", [PyramidEncoder, SimpleFeaturePyramidEncoder])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_no_level_is_coarser_than_the_output_stride(encoder_class: type, output_stride: int) -> None:
    for name in ("tiny_vit", "tiny_eva"):
        encoder = encoder_class(name, output_stride=output_stride)
        features = encoder(torch.randn(1, 3, 64, 96))
        strides = [64 // feature.shape[2] for feature in features]
        assert strides == [min(2**level, output_stride) for level in range(6)]
        assert encoder.output_stride == output_stride
        assert (
            [feature.shape[1] for feature in features]
            == encoder.out_channels
            == encoder_class(name).out_channels
        )


@pytest.mark.parametrize("name", ["vz-shuffle-tiny_eva", "vz-tiny_vit"])
@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.__name__)
def test_every_decoder_of_smp(decoder: type, name: str) -> None:
    model = decoder(name, encoder_weights=None, in_channels=4, classes=2).eval()
    short, long = (128, 160) if decoder is smp.PAN else (64, 96)  # PAN takes no less
    with torch.no_grad():
        for height, width in [(short, long), (long, short)]:
            assert model(torch.randn(1, 4, height, width)).shape == (1, 2, height, width)


def test_trains_in_a_decoder() -> None:
    for name in ("vz-shuffle-tiny_vit", "vz-tiny_dinov3"):
        model = smp.Unet(name, encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8))
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("depth", [0, 6])
def test_invalid_depth(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth should be in range \[1, 5\], got {depth}"):
        smp.encoders.get_encoder("vz-tiny_vit", depth=depth, weights=None)
    with pytest.raises(ValueError, match="Output stride should be 16 or 8, got 4"):
        smp.encoders.get_encoder("vz-tiny_vit", output_stride=4, weights=None)


@pytest.mark.parametrize("name", ["vz-shuffle-tiny_beit", "vz-tiny_relpos"])
def test_compiles_and_exports_at_the_size_it_was_run_at(name: str) -> None:
    encoder, image = smp.encoders.get_encoder(name, weights=None).eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match=r"can be exported for \(64, 96\) once it has been run"):
            torch.export.export(encoder, (image,), strict=False)
        compiled = torch.compile(encoder, backend="eager")(image)  # with a break in the graph
        expected = encoder(image)
        exported = torch.export.export(encoder, (image,), strict=False).module()(image)
        whole = torch.compile(encoder, backend="eager", fullgraph=True)(image)
    for outputs in (compiled, exported, whole):
        for a, b in zip(expected, outputs, strict=True):
            torch.testing.assert_close(a, b)


def test_pooling_at_the_border_of_an_odd_size() -> None:
    encoder = PyramidEncoder("tiny_vit", depth=5).eval()
    features = encoder(torch.randn(1, 3, 80, 48))
    assert [tuple(feature.shape[2:]) for feature in features] == [
        (-(-80 // 2**level), -(-48 // 2**level)) for level in range(6)
    ]
    last = encoder.maps(torch.zeros(1, 3, 80, 48))[-1]
    constant = F.avg_pool2d(torch.ones_like(last), 2, ceil_mode=True)
    torch.testing.assert_close(encoder._to_level(torch.ones_like(last), level=5, stride=32), constant)
