"""`vitseg predict` on images of several kinds, with weights and with a checkpoint."""

import csv
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from PIL import Image

from vitseg_zoo import Predictor, save_model
from vitseg_zoo.cli import main
from vitseg_zoo.data.oxford_pets import CLASS_NAMES, PALETTE
from vitseg_zoo.data.transforms import resize
from vitseg_zoo.inference.predictor import predict_image
from vitseg_zoo.palette import distinct_colors
from vitseg_zoo.training.module import SegmentationModule
from vitseg_zoo.weights import catalog
from vitseg_zoo.weights.catalog import DEFAULT_MODEL

TINY = {"encoder_name": "tu-test_resnet", "encoder_weights": None, "decoder_channels": (32, 16, 16, 8, 8)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "pets.safetensors"
    model = smp.create_model("unet", classes=3, **TINY)
    described = {"class_names": CLASS_NAMES, "palette": PALETTE, "input_size": (64, 64)}
    return save_model(model, path, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2), **described)


@pytest.fixture
def photograph(tmp_path: Path) -> Image.Image:
    """70 wide and 50 high, with structure of several sizes."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize((70, 50), Image.Resampling.BICUBIC)


def _predict(weights: Path, out: Path, *images: Path) -> int:
    return main(["predict", *map(str, images), "--weights", str(weights), "--out", str(out)])


def _mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_palette_mask_and_overlay_at_the_images_own_size(weights, photograph, tmp_path, capsys):
    photograph.save(tmp_path / "cat.png")
    assert _predict(weights, tmp_path / "out", tmp_path / "cat.png") == 0
    mask, overlay = (Image.open(tmp_path / "out" / name) for name in ("cat_mask.png", "cat_overlay.jpg"))
    assert mask.mode == "P" and mask.size == (70, 50)
    assert overlay.width >= 70 and overlay.height > 50  # with a legend below
    overlay = overlay.crop((0, 0, 70, 50))
    labels = np.asarray(mask)
    assert len(np.unique(labels)) > 1 and labels.max() <= 2
    colors = np.asarray(PALETTE)[labels]
    np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), colors)
    half = (np.asarray(photograph, float) + colors) / 2
    assert np.abs(np.asarray(overlay, float) - half).mean() < 12  # JPEG's own losses
    printed = capsys.readouterr().out
    shares = dict(re.findall(r"(pet|background|border) ([\d.]+)%", printed))
    for index, name in enumerate(CLASS_NAMES):
        assert float(shares.get(name, 0)) == pytest.approx(100 * (labels == index).mean(), abs=0.06)


def test_classes_of_one_color_are_named(photograph, tmp_path, capsys):
    model = smp.create_model("unet", classes=3, **TINY)
    palette = [(140, 140, 140), (0, 0, 0), (140, 140, 140)]
    described = {"class_names": ["road", "sky", "skyscraper"], "palette": palette}
    weights = save_model(model, tmp_path / "streets.safetensors", **described)
    photograph.save(tmp_path / "street.png")
    assert _predict(weights, tmp_path / "out", tmp_path / "street.png") == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "road and skyscraper have the same color: only the numbers in the masks tell them apart"
    )


def test_labels_are_those_of_the_model(weights, photograph, tmp_path):
    from safetensors.torch import load_file

    photograph.resize((64, 64)).save(tmp_path / "cat.png")
    assert _predict(weights, tmp_path / "out", tmp_path / "cat.png") == 0
    model = smp.Unet(classes=3, **TINY).eval()
    model.load_state_dict(load_file(weights))
    image = torch.from_numpy(np.asarray(photograph.resize((64, 64)), np.float32)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = model((image - 0.4) / 0.2).argmax(1)[0].numpy()
    assert (_mask(tmp_path / "out" / "cat_mask.png") == expected).mean() > 0.999


def test_checkpoint_of_a_training(photograph, tmp_path):
    module = SegmentationModule("unet", TINY["encoder_name"], None, CLASS_NAMES, PALETTE, (64, 96)).eval()
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    photograph.save(tmp_path / "cat.png")
    images = [str(tmp_path / "cat.png"), "--out", str(tmp_path)]
    assert main(["predict", *images, "--checkpoint", str(tmp_path / "best.ckpt")]) == 0
    resized = resize((64, 96))(image=np.asarray(photograph))["image"]
    with torch.no_grad():
        logits = module(torch.tensor(resized).permute(2, 0, 1)[None] / 255)
    expected = F.interpolate(logits, (50, 70), mode="bilinear").argmax(1)[0].numpy()
    assert (_mask(tmp_path / "cat_mask.png") == expected).mean() > 0.999


def test_exif_orientation_is_honored(weights, photograph, tmp_path):
    photograph.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: to be turned by 90 degrees clockwise
    photograph.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png", exif=exif)
    assert _predict(weights, tmp_path / "out", tmp_path / "upright.png", tmp_path / "lying.png") == 0
    upright, lying = (_mask(tmp_path / "out" / f"{name}_mask.png") for name in ("upright", "lying"))
    np.testing.assert_array_equal(upright, lying)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_other_modes(weights, photograph, mode, tmp_path):
    path = tmp_path / ("cat.tif" if mode == "CMYK" else "cat.png")
    photograph.convert(mode).save(path)
    assert _predict(weights, tmp_path / "out", path) == 0
    assert _mask(tmp_path / "out" / "cat_mask.png").shape == (50, 70)


def test_an_image_of_16_bits_is_predicted_like_one_of_8(weights, photograph, tmp_path):
    gray = np.asarray(photograph.convert("L"))
    Image.fromarray(gray).save(tmp_path / "flat.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert _predict(weights, tmp_path / "out", tmp_path / "flat.png", tmp_path / "deep.png") == 0
    flat, deep = (_mask(tmp_path / "out" / f"{name}_mask.png") for name in ("flat", "deep"))
    assert (flat != deep).mean() < 0.02  # rounded to 16 bits where it is resized, and not to 8


def test_an_unreadable_image_is_named_and_stops_no_other(weights, photograph, tmp_path, capsys):
    photograph.save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:700])
    (tmp_path / "notes.jpg").write_text("no image")
    photograph.save(tmp_path / "cat.png")
    names = ["absent.png", "cut.jpg", "notes.jpg", "cat.png"]
    assert _predict(weights, tmp_path / "out", *(tmp_path / name for name in names)) == 1
    absent, cut, notes = capsys.readouterr().err.splitlines()
    assert absent == f"vitseg predict: there is no image {tmp_path / 'absent.png'}."
    assert cut.startswith(f"vitseg predict: {tmp_path / 'cut.jpg'} cannot be read as an image: ")
    assert "notes.jpg is not an image in a format that is read (" in notes
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cat_mask.png", "cat_overlay.jpg"]


def test_a_result_that_cannot_be_written_is_named_and_stops_no_other(weights, photograph, tmp_path, capsys):
    long = "x" * 247  # a file's name has 255 bytes
    (tmp_path / "out" / "taken_mask.png").mkdir(parents=True)
    paths = [tmp_path / f"{name}.png" for name in (long, "taken", "cat")]
    for path in paths:
        photograph.save(path)
    assert _predict(weights, tmp_path / "out", *paths) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert f"{long}_mask.png cannot be written: " in first and "taken_mask.png cannot be written: " in second
    written = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert written == {"cat_mask.png", "cat_overlay.jpg"}


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_photographs_of_any_size(weights, photograph, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # of 3500 pixels
    photograph.save(tmp_path / "cat.png")
    assert _predict(weights, tmp_path / "out", tmp_path / "cat.png") == 0


def test_names_that_a_terminal_cannot_show_or_would_obey(weights, photograph, tmp_path):
    names = ["日本.png", "a\x1b]0;title\x07.png", "b.png"]
    for name in names:
        photograph.save(tmp_path / name)
    command = [sys.executable, "-m", "vitseg_zoo.cli", "predict", *names, "no\x1b[2J.png", "--out", "out"]
    result = subprocess.run(
        [*command, "--weights", str(weights)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
    )
    assert (tmp_path / "out" / "b_mask.png").exists() and result.returncode == 1, result.stderr
    assert b"\\u65e5\\u672c_mask.png: " in result.stdout and b"a\\x1b]0;title\\x07" in result.stdout
    assert result.stderr.endswith(b"there is no image no\\x1b[2J.png.\n")
    assert b"\x1b" not in result.stdout + result.stderr and b"\x07" not in result.stdout + result.stderr


def test_results_never_replace_each_other_or_an_image(weights, photograph, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    for name in ("cat.png", "a/cat.jpg", "dog.png", "dog_mask.png"):
        photograph.save(tmp_path / name)
    out = tmp_path / "out"
    assert _predict(weights, out, tmp_path / "cat.png", tmp_path / "a" / "cat.jpg") == 1
    assert "would both be written to" in capsys.readouterr().err and not out.exists()
    assert _predict(weights, tmp_path, tmp_path / "dog.png", tmp_path / "dog_mask.png") == 1
    assert "dog_mask.png would overwrite an image" in capsys.readouterr().err


def test_one_class_and_no_metadata(photograph, tmp_path):
    path = save_model(smp.create_model("unet", classes=1, **TINY), tmp_path / "one.safetensors")
    photograph.save(tmp_path / "cat.png")
    assert _predict(path, tmp_path, tmp_path / "cat.png") == 0
    mask = Image.open(tmp_path / "cat_mask.png")
    assert mask.size == (70, 50) and set(np.unique(np.asarray(mask))) <= {0, 1}
    assert mask.getpalette()[:3] == [0, 0, 0]


def test_with_no_model_named_the_package_s_own_is_used(photograph, tmp_path, monkeypatch):
    packaged = Path(str(catalog.PACKAGED), f"{DEFAULT_MODEL}.safetensors")
    photograph.save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "cat.png"]) == 0
    assert _predict(packaged, tmp_path / "out", tmp_path / "cat.png") == 0
    np.testing.assert_array_equal(_mask(Path("masks/cat_mask.png")), _mask(Path("out/cat_mask.png")))


def test_a_new_user_s_first_command_asks_for_no_network(photograph, tmp_path):
    """With the model that comes with the package, an empty home and a network that must not be used."""
    photograph.save(tmp_path / "cat.jpg")
    code = """
    import sys
    def refuse(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo"):
            raise AssertionError(f"{event} {arguments}")
    sys.addaudithook(refuse)
    from vitseg_zoo.cli import main
    sys.exit(main(["predict", "cat.jpg"]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    knows, how, found = result.stdout.splitlines()
    assert how == "images are squeezed to 256 x 256 pixels (--fit)"
    assert result.stderr == "" and knows == "segformer_b0.pets knows pet, background, border"
    assert found.startswith("masks/cat_mask.png: ")
    assert Image.open(tmp_path / "masks" / "cat_mask.png").size == photograph.size


def test_classes_that_a_mask_cannot_hold_are_refused():
    model = torch.nn.Conv2d(3, 300, 1)
    torch.nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias[:] = torch.arange(300)
    with pytest.raises(ValueError, match=r"holds the classes 0 to 255, but the model predicts class 299"):
        predict_image(model, np.zeros((32, 32, 3), np.uint8), {})


def test_colors_of_many_classes_differ():
    colors = distinct_colors(150)
    assert len(set(colors)) == 150 and all(0 <= part <= 255 for color in colors for part in color)


@pytest.mark.parametrize(
    "arguments, message",
    [(["--checkpoint", "none.ckpt"], "there is no checkpoint none.ckpt."), (["--weights", "none"], "none")],
)
def test_a_model_that_is_not_there(arguments, message, photograph, tmp_path, capsys):
    photograph.save(tmp_path / "cat.png")
    assert main(["predict", str(tmp_path / "cat.png"), "--out", str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.splitlines()) == 1


def test_folders_and_patterns(weights, photograph, tmp_path, capsys):
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ("photos/cat.png", "photos/more/cat.jpg", "photos/dog.png"):
        photograph.save(tmp_path / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    out = tmp_path / "photos" / "masks"  # what is written there is no image of the folder
    for _ in range(2):
        assert _predict(weights, out, tmp_path / "photos") == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*_mask.png"))
    assert written == ["cat_mask.png", "dog_mask.png", "more/cat_mask.png"]
    assert _predict(weights, tmp_path / "two", tmp_path / "photos" / "*.png") == 0
    assert sorted(path.name for path in (tmp_path / "two").glob("*mask.png")) == [
        "cat_mask.png",
        "dog_mask.png",
    ]
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    assert _predict(weights, out, tmp_path / "empty") == 1 and "has no images" in capsys.readouterr().err
    assert _predict(weights, out, tmp_path / "*.gif") == 1 and "there is no image" in capsys.readouterr().err


def test_what_exists_is_skipped(weights, photograph, tmp_path, capsys):
    for name in ("cat.png", "dog.png"):
        photograph.save(tmp_path / name)
    out = tmp_path / "out"
    assert _predict(weights, out, tmp_path / "cat.png") == 0
    (out / "cat_mask.png").write_text("kept")
    capsys.readouterr()
    assert _predict(weights, out, tmp_path / "cat.png", tmp_path / "dog.png") == 0
    assert (out / "cat_mask.png").read_text() == "kept" and (out / "dog_mask.png").is_file()
    assert "1 of 2 images have their mask and overlay" in capsys.readouterr().out
    assert _predict(weights, out, tmp_path / "cat.png", Path("--overwrite")) == 0
    assert _mask(out / "cat_mask.png").shape == (50, 70)


def test_tiles(weights, photograph, tmp_path, capsys):
    photograph.save(tmp_path / "cat.png")
    assert _predict(weights, tmp_path, tmp_path / "cat.png", Path("--tile"), Path("32")) == 0
    assert "cut into tiles of 32 x 32 pixels that overlap by 25%" in capsys.readouterr().out
    expected = Predictor(weights, "cpu", tile=32)(photograph).labels
    np.testing.assert_array_equal(_mask(tmp_path / "cat_mask.png"), expected)


def test_everything_of_several_images(weights, photograph, tmp_path, capsys):
    """The tables hold all images, those of an earlier run as well."""
    pytest.importorskip("pycocotools")
    for name in ("cat.png", "dog.png"):
        photograph.save(tmp_path / name)
    out = tmp_path / "out"
    assert _predict(weights, out, tmp_path / "cat.png", Path("--outputs"), Path("mask")) == 0
    assert [path.name for path in out.iterdir()] == ["cat_mask.png"]
    images = [tmp_path / "cat.png", tmp_path / "dog.png"]
    everything = [Path("--outputs"), Path("mask,areas,coco,label-studio")]
    assert _predict(weights, out, *images, *everything) == 0
    assert "1 of 2 images have their mask" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "areas.csv").open()))
    assert json.loads((out / "areas.json").read_text())[0]["image"] == rows[0]["image"] == "cat.png"
    assert {row["image"] for row in rows} == {"cat.png", "dog.png"}
    labels = _mask(out / "dog_mask.png")
    shares = {row["class"]: float(row["share"]) for row in rows if row["image"] == "dog.png"}
    for index, name in enumerate(CLASS_NAMES):
        assert shares.get(name, 0) == pytest.approx((labels == index).mean(), abs=1e-5)
    coco = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["cat.png", "dog.png"]
    assert [category["name"] for category in coco["categories"]] == [*CLASS_NAMES]
    assert len(json.loads((out / "label_studio.json").read_text())) == 2
    with pytest.raises(SystemExit):
        _predict(weights, out, *images, Path("--outputs"), Path("masks"))
    assert "should be of mask, overlay, geojson, areas, coco, label-studio" in capsys.readouterr().err


def test_augmentation_says_what_it_costs(weights, photograph, tmp_path, capsys):
    photograph.save(tmp_path / "cat.png")
    assert _predict(weights, tmp_path, tmp_path / "cat.png", Path("--tta"), Path("flips,scales")) == 0
    assert "each image takes 6.25 times as long (--tta flips,scales)" in capsys.readouterr().out
    expected = Predictor(weights, "cpu", tta=["flips", "scales"])(photograph).labels
    np.testing.assert_array_equal(_mask(tmp_path / "cat_mask.png"), expected)


def test_images_of_one_size_are_batched_and_keep_their_order(weights, photograph, tmp_path):
    names = [f"{index}.png" for index in range(5)]
    for index, name in enumerate(names):
        turned = photograph.rotate(40 * index)
        (turned.resize((40, 40)) if index == 3 else turned).save(tmp_path / name)
    (tmp_path / "2b.png").write_text("no image")
    images = [tmp_path / name for name in [*names[:3], "2b.png", *names[3:]]]
    assert _predict(weights, tmp_path / "one", *images) == 1
    assert _predict(weights, tmp_path / "two", *images, Path("--batch-size"), Path("2")) == 1
    for name in names:
        masks = [_mask(tmp_path / out / name.replace(".", "_mask.")) for out in ("one", "two")]
        assert (masks[0] == masks[1]).mean() > 0.999


def test_masks_in_other_colors_are_of_another_model(
    photograph: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture
):
    photograph.save(tmp_path / "a.png")
    words = ["predict", str(tmp_path / "a.png"), "--out", str(tmp_path), "--outputs", "mask", "--weights"]
    assert main([*words, "segformer_b0.pets"]) == 0 == main([*words, "vitseg_tiny.pets"])
    assert "have their mask" in capsys.readouterr().out
    assert main([*words, "segformer_b0.clothing"]) == 1
    assert "_mask.png is the mask of a model with other classes" in capsys.readouterr().err
    assert main([*words, "segformer_b0.clothing", "--overwrite"]) == 0
