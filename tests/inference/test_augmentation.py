"""Test-time augmentation against ttach, whose wrapper averages SMP's models, and its cost."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitseg_zoo.inference.augmentation import augmented, cost


def _model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 5, padding=2)).eval()


@torch.no_grad()
def test_flips_are_those_of_ttach():
    ttach = pytest.importorskip("ttach")
    model, pixels = _model(), torch.rand(2, 3, 32, 64)
    wrapped = ttach.SegmentationTTAWrapper(model, ttach.aliases.hflip_transform(), merge_mode="mean")
    torch.testing.assert_close(augmented(model, pixels, ["flips"]), wrapped(pixels))
    assert not torch.allclose(augmented(model, pixels, []), wrapped(pixels))


@torch.no_grad()
def test_scales_are_averaged_at_the_images_size():
    model, pixels, runs = _model(), torch.rand(1, 3, 128, 64), []

    def counted(x):
        runs.append(tuple(x.shape[2:]))
        return model(x)

    result = augmented(counted, pixels, ["scales"])
    assert sorted(runs) == [(96, 64), (128, 64), (160, 64)]  # multiples of 32
    expected = sum(
        F.interpolate(model(F.interpolate(pixels, size, mode="bilinear")), (128, 64), mode="bilinear")
        for size in runs
    )
    torch.testing.assert_close(result, expected / 3)


def test_cost():
    assert (cost([]), cost(["flips"]), cost(["scales"])) == (1, 2, 3.125)
