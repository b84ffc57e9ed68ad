"""The bare PyTorch loop, next to SMP's own metrics."""

import sys
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from vitseg_zoo.recipes import plain_loop

from vitseg_zoo import load_weights


def _data(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 3)):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for index in range(count):
            mask = np.repeat(rng.integers(0, 3, 64, np.uint8), 64).reshape(64, 64)
            mask[:8] = plain_loop.IGNORE_INDEX
            Image.fromarray(mask).save(root / split / "masks" / f"{index}.png")
            Image.fromarray(np.stack([mask * 80] * 3, axis=2)).save(root / split / "images" / f"{index}.png")
    (root / "classes.txt").write_text("cat\ndog\nrest")  # without a last line's end
    return root


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [("vitseg", "vz-vitseg_tiny_patch16_128"), ("fusedsegformer", "vz-mit_b0"), ("unet", "resnet18")],
)
def test_trains_measures_and_keeps_the_best_weights(
    arch: str, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data, out = _data(tmp_path / "data"), tmp_path / "plain.pth"
    options = ["--arch", arch, "--encoder", encoder, "--epochs", "2", "--batch-size", "2", "--size", "64"]
    monkeypatch.setattr(sys, "argv", ["plain_loop.py", "--data", str(data), "--out", str(out), *options])
    plain_loop.main()
    printed = capsys.readouterr().out.splitlines()[-1]

    model = smp.create_model(arch, encoder, None, classes=3).eval()
    load_weights(model, out)
    pairs = list(plain_loop.Folder(data / "val", 64, train=False))
    with torch.no_grad():
        labels = model(torch.stack([image for image, _ in pairs])).argmax(1)
    masks = torch.stack([mask for _, mask in pairs])
    counts = smp.metrics.get_stats(
        labels, masks, mode="multiclass", num_classes=3, ignore_index=plain_loop.IGNORE_INDEX
    )
    tp, fp, fn, _ = (count.sum(0) for count in counts)
    expected = (tp / (tp + fp + fn)).mean()
    assert printed == f"best mIoU {expected:.4f}, in {out}"
    assert {path.name for path in tmp_path.iterdir()} == {"data", "plain.pth"}
