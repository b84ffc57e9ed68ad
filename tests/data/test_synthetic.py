"""The drawn data set: reproducible, complete, and not to be solved by color."""

import numpy as np
import pytest
import torch
from torch import nn

from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.synthetic import BACKGROUND, BORDER, PET, SyntheticPets
from vitseg_zoo.metrics import SegmentationMetrics


def test_a_picture_depends_on_split_seed_and_index_alone():
    forwards, backwards = SyntheticPets(6), SyntheticPets(100)
    first = [forwards[index] for index in range(6)]
    again = [backwards[index] for index in reversed(range(6))][::-1]
    for (image, mask), (same_image, same_mask) in zip(first, again, strict=True):
        np.testing.assert_array_equal(image, same_image)
        np.testing.assert_array_equal(mask, same_mask)
    others = [forwards[1], SyntheticPets(6, split="val")[0], SyntheticPets(6, seed=1)[0]]
    for image, _ in others:
        assert (image != first[0][0]).mean() > 0.5


def test_masks_are_trimaps():
    """All three classes, in shares like those of photographs; the border is a thin band between."""
    masks = np.stack([mask for _, mask in SyntheticPets(60)])
    shares = np.bincount(masks.ravel(), minlength=3) / masks.size
    assert 0.15 < shares[PET] < 0.4
    assert 0.5 < shares[BACKGROUND] < 0.75
    assert 0.06 < shares[BORDER] < 0.15
    for left, right in ((masks[:, :, :-1], masks[:, :, 1:]), (masks[:, :-1], masks[:, 1:])):
        assert not ((left == PET) & (right == BACKGROUND)).any()
        assert not ((left == BACKGROUND) & (right == PET)).any()


def test_image_size_and_items_for_a_model():
    image, mask = SegmentationDataset(SyntheticPets(3, image_size=96), 96, classes=3)[2]
    assert image.shape == (3, 96, 96) and image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    assert mask.shape == (96, 96) and mask.dtype == torch.int64


def test_bad_arguments():
    with pytest.raises(ValueError, match="split must be"):
        SyntheticPets(3, split="validation")
    with pytest.raises(IndexError, match="out of range"):
        SyntheticPets(3)[3]


def test_color_alone_does_not_solve_it():
    """A network that sees a pixel and the mean color around it stays far below a segmentation model."""
    splits = {}
    for split, count in {"train": 80, "val": 40}.items():
        dataset = SegmentationDataset(SyntheticPets(count, split), 128, classes=3)
        images, masks = (
            torch.stack(part) for part in zip(*map(dataset.__getitem__, range(count)), strict=True)
        )
        around = nn.functional.avg_pool2d(images, 15, stride=1, padding=7, count_include_pad=False)
        colors = torch.cat([images, around], dim=1)[:, :, 2::4, 2::4]  # (N, 6, 32, 32)
        splits[split] = colors.movedim(1, -1).flatten(0, 2), masks[:, 2::4, 2::4].flatten()
    colors, labels = splits["train"]
    model = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(300):
        chosen = torch.randint(len(labels), (1024,))
        loss = nn.functional.cross_entropy(model(colors[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    metrics = SegmentationMetrics(("pet", "background", "border"))
    with torch.no_grad():
        metrics.update(model(splits["val"][0]).argmax(-1), splits["val"][1])
    scores = metrics.compute()
    assert scores["miou"] < 0.3
    assert scores["iou_border"] < 0.02
