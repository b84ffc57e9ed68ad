"""Augmentation presets: sizes, masks that stay on their objects, and the command's sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitseg_zoo.cli import main
from vitseg_zoo.data.transforms import PRESETS


@pytest.mark.parametrize("shape", [(40, 60), (200, 90), (96, 128)])
@pytest.mark.parametrize("name", PRESETS)
def test_masks_stay_on_their_objects(name: str, shape: tuple[int, int]):
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 4 : -shape[0] // 4, shape[1] // 3 :] = 200
    image = np.repeat(mask[..., None], 3, 2)
    augment = PRESETS[name]((96, 128))
    augment.set_random_seed(0)
    for _ in range(10):
        out = augment(image=image, mask=mask)
        assert out["image"].shape == (96, 128, 3) and out["mask"].shape == (96, 128)
        assert set(np.unique(out["mask"])) <= {0, 200}
        if np.ptp(out["mask"]):
            gray = out["image"].mean(2)
            bright = gray > (gray[out["mask"] == 200].mean() + gray[out["mask"] == 0].mean()) / 2
            assert (bright == (out["mask"] == 200)).mean() > 0.93


def test_presets_depend_on_the_seed_alone():
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    seen = []
    for seed in (1, 1, 2):
        augment = PRESETS["heavy"](64)
        augment.set_random_seed(seed)
        seen.append(augment(image=image, mask=image[..., 0])["image"])
    assert (seen[0] == seen[1]).all() and (seen[0] != seen[2]).any()


def test_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray((pixels[..., 0] > 99).astype(np.uint8) * 255).save(tmp_path / "m.png")
    out = tmp_path / "sheet.png"
    command = ["augment", str(tmp_path / "a.png"), str(tmp_path / "m.png"), "--out", str(out)]
    command += ["--image-size", "32"]
    assert main([*command, "--recipe", "aerial"]) == 0
    assert Image.open(out).size == (4 * 32, 3 * 32)
    Image.fromarray(pixels[:40, :, 0]).save(tmp_path / "m.png")
    assert main(command) == 1
    assert "is 40 x 70, and the image 50 x 70" in capsys.readouterr().err
