"""Losses by name, against PyTorch's and SMP's own, and masks of one class or of several labels."""

from inspect import signature

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from vitseg_zoo.data.check import check
from vitseg_zoo.data.class_weights import class_weights
from vitseg_zoo.data.segmentation_folder import SegmentationFolder
from vitseg_zoo.losses import create_loss


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of three classes, and a mask with pixels that do not count."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 3, (2, 8, 8), generator=generator)
    mask[:, :2] = 255
    return torch.randn(2, 3, 8, 8, generator=generator), mask


def test_cross_entropy_with_weights_and_smoothing_is_pytorchs(pair):
    logits, mask = pair
    loss = create_loss("CrossEntropy", ignore_index=255, class_weights=[1, 2, 0.5], label_smoothing=0.1)
    weight = torch.tensor([1, 2, 0.5])
    expected = F.cross_entropy(logits, mask, weight, ignore_index=255, label_smoothing=0.1)
    torch.testing.assert_close(loss(logits, mask), expected)


@pytest.mark.parametrize("name", ["dice", "jaccard", "TverskyLoss", "focal", "lovasz"])
def test_a_sum_is_the_sum_of_smps_losses(name: str, pair):
    logits, mask = pair
    cls = getattr(smp.losses, f"{name.removesuffix('Loss').capitalize()}Loss")
    if "ignore_index" not in signature(cls).parameters:
        pytest.skip("SMP 0.5 knows it for fewer losses")
    loss = create_loss(f"cross_entropy + {name}", ignore_index=255)
    expected = F.cross_entropy(logits, mask, ignore_index=255)
    expected = expected + cls("multiclass", ignore_index=255)(logits, mask)
    torch.testing.assert_close(loss(logits, mask), expected)


def test_one_class_and_several_labels_are_binary_cross_entropy(pair):
    logits, mask = pair
    one = (mask == 1).long()
    loss = create_loss("cross_entropy+dice", "binary", class_weights=[1.0, 3.0], label_smoothing=0.2)
    soft = one.float() * 0.8 + 0.1
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], soft, pos_weight=torch.tensor(3.0))
    expected = expected + smp.losses.DiceLoss("binary")(logits[:, :1], one)
    torch.testing.assert_close(loss(logits[:, :1], one), expected)

    several = torch.stack([mask == 0, mask < 2, mask == 2], dim=1).long()
    expected = F.binary_cross_entropy_with_logits(logits, several.float())
    torch.testing.assert_close(create_loss("cross_entropy", "multilabel")(logits, several), expected)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("dise", {}, "There is no loss 'dise', only cross_entropy, jaccard, dice"),
        (
            "lovasz",
            {"class_weights": [1.0, 1.0]},
            "The loss lovasz knows no class_weights: add \\+cross_entropy",
        ),
        ("dice", {"label_smoothing": 0.1}, "knows no label_smoothing"),
        ("mcc", {}, "MCC loss is for one class only"),
        ("mcc", {"mode": "binary", "ignore_index": 255}, "knows no ignore_index"),
        ("dice", {"mode": "some"}, "mode should be"),
    ],
)
def test_what_a_loss_cannot_do_is_said(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_loss(name, **options)


def test_weights_of_a_training_are_those_that_check_suggests(data_root):
    road = SegmentationFolder(data_root / "road", "val")
    suggested = check(data_root / "road").weights
    train = SegmentationFolder(data_root / "road", "train")
    found = class_weights((mask for _, mask in train), len(road.class_names))
    np.testing.assert_allclose(found, suggested)
