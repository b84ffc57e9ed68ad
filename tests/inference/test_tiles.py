"""Tiles against MONAI's sliding window, the whole image, and themselves in other batches."""

import numpy as np
import pytest
import torch
from torch import nn

from vitseg_zoo.inference.tiles import blend_tiles

SIZES = [(64, 64), (150, 203), (64, 130), (65, 64), (40, 50), (33, 170), (200, 128)]


def _model() -> nn.Module:
    """Sees where a tile ends, by its zeros around the tile."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 9, padding=4), nn.Tanh(), nn.Conv2d(4, 3, 9, padding=4)).double()


def _blended(model, image, **options):
    """Logits (3, H, W); every pixel is given once."""

    @torch.no_grad()
    def logits(tiles):
        return model(torch.from_numpy(tiles).permute(0, 3, 1, 2))

    blended = torch.full((3, *image.shape[:2]), torch.nan, dtype=torch.float64)
    for top, left, block in blend_tiles(
        logits, lambda top, bottom: image[top:bottom], image.shape[:2], **options
    ):
        part = blended[:, top : top + block.shape[1], left : left + block.shape[2]]
        assert part.shape == block.shape and part.isnan().all()
        part.copy_(block)
    return blended


def _image(size):
    return np.random.default_rng(0).random((*size, 3))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
@pytest.mark.parametrize("size", SIZES)
def test_equal_to_monai(size, overlap):
    inferers = pytest.importorskip("monai.inferers")
    model, image = _model(), _image(size)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    roi = [min(64, -(-side // 32) * 32) for side in size]
    with torch.no_grad():
        expected = inferers.sliding_window_inference(
            pixels, roi, 2, model, overlap, mode="gaussian", padding_mode="reflect"
        )[0]
    blended = _blended(model, image, tile=(64, 64), overlap=overlap)
    torch.testing.assert_close(blended, expected, rtol=1e-6, atol=1e-6)  # MONAI's weights are float32


@pytest.mark.parametrize("size", [(64, 64), (32, 64)])
def test_one_tile_is_the_whole_image(size):
    model, image = _model(), _image(size)
    with torch.no_grad():
        expected = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    torch.testing.assert_close(_blended(model, image, tile=(64, 96)), expected, rtol=1e-10, atol=1e-10)


def test_the_same_in_any_batch():
    model, image = _model(), _image((150, 203))
    one = _blended(model, image, tile=(64, 64))
    for batch_size in (2, 3, 100):
        torch.testing.assert_close(_blended(model, image, tile=(64, 64), batch_size=batch_size), one)


@pytest.mark.parametrize("overlap", [0.25, 0.7])
def test_goes_on_where_it_ended(overlap):
    model, image = _model(), _image((150, 203))
    whole = _blended(model, image, tile=(64, 64), overlap=overlap)
    first = {0.25: 48, 0.7: 57}[overlap]  # the top of a row of tiles
    rest = _blended(model, image, tile=(64, 64), overlap=overlap, first_row=first)
    assert rest[:, :first].isnan().all()
    torch.testing.assert_close(rest[:, first:], whole[:, first:], rtol=0, atol=0)


def test_a_model_without_borders_sees_no_tiles():
    """Whatever depends on a pixel alone is blended to itself, at each edge and corner."""
    model, image = nn.Conv2d(3, 3, 1).double(), _image((131, 97))
    with torch.no_grad():
        expected = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    torch.testing.assert_close(_blended(model, image, tile=(64, 32)), expected)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_logits_are_summed_in_float32(half):
    """What a model gives in half precision is blended as exactly as the same numbers in float32."""
    image = np.random.default_rng(0).random((100, 130, 3), np.float32)

    def blend(dtype):
        whole = torch.empty(3, 100, 130)
        blocks = blend_tiles(
            lambda tiles: (8 * torch.from_numpy(tiles).permute(0, 3, 1, 2)).to(half).to(dtype),
            lambda top, bottom: image[top:bottom],
            image.shape[:2],
            (64, 64),
            0.5,
        )
        for top, left, block in blocks:
            assert block.dtype == torch.float32
            whole[:, top : top + block.shape[1], left : left + block.shape[2]] = block
        return whole

    torch.testing.assert_close(blend(half), blend(torch.float32), rtol=0, atol=0)
