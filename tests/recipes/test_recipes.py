"""The recipes: each trains, on a small copy of its data in their documented layout, and leaves a model."""

import importlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from warm_python import WarmPython

from vitseg_zoo import load_model
from vitseg_zoo.data.ade20k import Ade20k
from vitseg_zoo.data.camvid import CamVid
from vitseg_zoo.data.cityscapes import Cityscapes
from vitseg_zoo.training.config import RunConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {"batch_size": 2, "precision": "32-true", "num_workers": 0}


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _photo(seed: int, height: int = 48, width: int = 72) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _blocks(values: list[int], height: int = 48, width: int = 72) -> np.ndarray:
    """A mask of vertical stripes."""
    return np.repeat(np.resize(np.array(values, np.uint8), width // 4), 4)[None].repeat(height, 0)


def _ade20k(root: Path) -> Path:
    for split in ("training", "validation"):
        for index in range(3):
            _write(root / "images" / split / f"ADE_{index}.jpg", _photo(index))
            _write(root / "annotations" / split / f"ADE_{index}.png", _blocks([0, 1, 150, 3]))
    return root


def _cityscapes(root: Path) -> Path:
    for split, city in {"train": "aachen", "val": "ulm"}.items():
        for index in range(3):
            stem = f"{city}_00000{index}_000019"
            _write(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", _photo(index))
            target = root / "gtFine" / split / city
            _write(target / f"{stem}_gtFine_labelIds.png", _blocks([0, 7, 33, 29, 26]))
            _write(target / f"{stem}_gtFine_instanceIds.png", _blocks([0]))  # as there are
            (target / f"{stem}_gtFine_polygons.json").write_text("{}")
    return root


def _camvid(root: Path) -> Path:
    for split in ("train", "val", "test"):
        for index in range(3):
            _write(root / split / f"{index}.png", _photo(index))
            _write(root / f"{split}annot" / f"{index}.png", _blocks([0, 3, 10, 11]))
    return root


def _folders(root: Path) -> Path:
    for split in ("train", "val"):
        for index in range(3):
            _write(root / split / "images" / f"{index}.jpg", _photo(index, 72, 48))
            _write(root / split / "masks" / f"{index}.png", _blocks([0, 1, 2], 72, 48))
    (root / "classes.txt").write_text("background\nskin\ncoat\n")
    return root


def _pets(root: Path, count: int = 8) -> Path:
    for split, number in {"trainval": count, "test": 2}.items():
        names = [f"{split}_{index}" for index in range(number)]
        for index, name in enumerate(names):
            _write(root / "oxford-iiit-pet" / "images" / f"{name}.jpg", _photo(index))
            trimaps = root / "oxford-iiit-pet" / "annotations" / "trimaps"
            _write(trimaps / f"{name}.png", _blocks([1, 2, 3]))
        lines = "".join(f"{name} 1 1 1\n" for name in names)
        (root / "oxford-iiit-pet" / "annotations" / f"{split}.txt").write_text(lines)
    return root


TINY_MIT = {"encoder_name": "vz-mit_b0", "encoder_weights": None}
RUNS = {
    "ade20k": (_ade20k, {**TINY_MIT, "max_steps": 2, "image_size": 64, "crop_size": 64}),
    "cityscapes": (_cityscapes, {**TINY_MIT, "max_steps": 2, "image_size": 64, "crop_size": 64}),
    "camvid": (_camvid, {**TINY_MIT, "epochs": 2, "image_size": 64, "crop_size": 64}),
    "clothing": (_folders, {**TINY_MIT, "epochs": 2, "image_size": 64}),
    "finetune_vit": (
        _folders,
        {
            "encoder_name": "vz-vitseg_tiny_patch16_128",
            "encoder_weights": None,
            "lora": 2,
            "lr": 0.1,
            "epochs": 2,
            "image_size": 64,
            "crop_size": 64,
        },
    ),
    "oxford_pets": (
        _pets,
        {
            "arch": "fusedsegformer",
            "encoder_name": "vz-mit_b0",
            "modern": True,
            "epochs": 2,
            "image_size": 64,
        },
    ),
}


# Dies as by a power failure, a random moment after its second epoch began.
KILLED = """
import importlib, json, os, pathlib, signal, sys, threading
import torch
from vitseg_zoo.training.module import SegmentationModule

name, paths, options, delay = json.loads(sys.argv[1])
start = SegmentationModule.on_train_batch_start

def start_and_die_later(self, batch, batch_index):
    if self.current_epoch:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    start(self, batch, batch_index)

SegmentationModule.on_train_batch_start = start_and_die_later
torch.set_num_threads(1)
recipe = importlib.import_module(f"vitseg_zoo.recipes.{name}")
recipe.main(recipe.Config(**{key: pathlib.Path(path) for key, path in paths.items()}, **options))
"""


@pytest.mark.parametrize("name", RUNS)
def test_recipe_killed_and_resumed_leaves_the_model_of_an_uninterrupted_one(name: str, tmp_path: Path):
    if name == "finetune_vit":
        pytest.importorskip("peft")
    write, options = RUNS[name]
    recipe = importlib.import_module(f"vitseg_zoo.recipes.{name}")
    data = write(tmp_path / "data")

    def run(out: str, **more: bool) -> tuple[RunConfig, dict]:
        config = recipe.Config(data=data, out=tmp_path / out, **{**SMALL, **options}, **more)
        return config, recipe.main(config)

    paths = {"data": str(data), "out": str(tmp_path / "out")}
    delay = np.random.default_rng(len(name)).uniform(0, 0.1)
    asked = json.dumps([name, paths, {**SMALL, **options}, delay])
    process = WarmPython(KILLED, asked, environment=dict(os.environ))
    assert process.wait() == -signal.SIGKILL, process.communicate()[1]
    torch.manual_seed(1)  # another process has other random numbers
    config, results = run("out", resume=True)
    _, whole = run("whole")
    assert whole["test_last"] == pytest.approx(results["test_last"], abs=0, nan_ok=True)
    one, other = (
        torch.load(tmp_path / out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for out in ("whole", "out")
    )
    for key, value in one.items():
        assert torch.equal(value, other[key]), key
    assert 0 <= results["test_last"]["miou"] <= 1 and results["precision"] == "32-true"
    if name == "oxford_pets":
        assert config.ema == 0.998 and results["test_best"]
        return
    model, metadata = load_model(tmp_path / "out" / "model.safetensors")
    if name == "finetune_vit":
        _assert_lora_is_merged(model, one)
    assert f"mIoU {100 * results['test_last']['miou']:.1f} %" in metadata["metric"]
    expected = {"ade20k": "shorter_side", "cityscapes": "tiles", "finetune_vit": "shorter_side"}
    assert metadata.get("fit") == expected.get(name)
    assert len(metadata["class_names"]) == {"ade20k": 150, "cityscapes": 19, "camvid": 11}.get(name, 3)


def test_drawn_animals_and_then_photographs_become_a_table_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = importlib.import_module("vitseg_zoo.recipes.how_much_data")
    monkeypatch.setattr(recipe, "PETS_EPOCHS", 2)
    small = {"images": 8, "max_steps": 1, "precision": "32-true", "num_workers": 0}
    data, out = _pets(tmp_path / "data", 12), tmp_path / "out"
    recipe.main(recipe.Config(configuration="vitseg-linear-16", data=data, out=out, **small))
    run = out / "vitseg-linear-16-steps-1-images-8-seed-0"
    drawn, pets = (json.loads((folder / "results.json").read_text()) for folder in (run, run / "pets"))
    assert pets["epochs"] == 2 and drawn["epochs"] == 1
    rows = (out / "table.md").read_text().splitlines()[2:]
    for row, on, result in zip(rows, ("drawn", "pets"), (drawn, pets), strict=True):
        cells = ["`vitseg-linear-16-steps-1`", "8", on, f"{100 * result['test_last']['miou']:.1f}"]
        assert [cell.strip() for cell in row.strip("|").split("|")] == cells
    with Image.open(out / "scores.png") as picture:
        assert picture.width > 2 * picture.height


@pytest.mark.parametrize("name", [*RUNS, "own_data", "how_much_data"])
def test_recipes_are_short_enough_to_be_read(name: str):
    assert len((RECIPES / f"{name}.py").read_text().splitlines()) <= 110


def test_labels_become_the_classes_of_the_benchmarks(tmp_path: Path):
    ade = Ade20k(_ade20k(tmp_path / "ade"), "validation")
    assert np.unique(ade[0][1]).tolist() == [0, 2, 149, 255] and ade.name(0) == "ADE_0.jpg"
    city = Cityscapes(_cityscapes(tmp_path / "city"), "val")
    assert np.unique(city[0][1]).tolist() == [0, 13, 18, 255]  # road, car, bicycle; caravan has no class
    assert [city.class_names[index] for index in (0, 13, 18)] == ["road", "car", "bicycle"]
    for reader in (Ade20k, Cityscapes, CamVid):
        with pytest.raises(FileNotFoundError, match=r"https?://"):
            reader(tmp_path, "val")


def test_camvid_as_segnet_has_it(data_root: Path):
    train = CamVid(data_root / "camvid", "train")
    assert [len(train), len(CamVid(data_root / "camvid", "test"))] == [367, 233]
    image, mask = train[0]
    assert image.shape == (360, 480, 3) and set(np.unique(mask)) <= set(range(12))


def _assert_lora_is_merged(model: torch.nn.Module, checkpoint: dict[str, torch.Tensor]) -> None:
    key = "model.encoder.model.blocks.3.mlp.fc1"
    base, a, b = (
        checkpoint[f"{key}.{part}.weight"] for part in ("base_layer", "lora_A.default", "lora_B.default")
    )
    assert b.abs().max() > 0  # starts at zero
    merged = model.encoder.model.blocks[3].mlp.fc1.weight  # of a file without a trace of LoRA
    torch.testing.assert_close(merged, base + 2 * b @ a, rtol=1e-2, atol=1e-3)  # saved in half precision
    assert not torch.allclose(merged, base, rtol=1e-2, atol=1e-3)


def test_own_data_of_large_images_with_a_damaged_one(tmp_path: Path, capfd: pytest.CaptureFixture):
    from vitseg_zoo.recipes import own_data

    data, out = tmp_path / "data", tmp_path / "out"
    for index in range(4):
        _write(data / "train" / "images" / f"{index}.tif", _photo(index, 150, 200))
        _write(data / "train" / "masks" / f"{index}.png", _blocks([0, 1], 150, 200))
    for kind in ("images", "masks"):
        (data / "val" / kind).mkdir(parents=True)
    for path in ("images/3.tif", "masks/3.png"):
        (data / "train" / path).rename(data / "val" / path)
    (data / "train" / "images" / "1.tif").write_bytes(b"II*\x00")
    options = {**SMALL, "data": data, "out": out, "encoder_weights": None, "epochs": 1, "crop_size": 64}
    with pytest.raises(ValueError, match=r"train/images/1\.tif cannot be read"):
        own_data.main(own_data.Config(**options, crop=True))
    results = own_data.main(own_data.Config(**options, crop=True, skip_bad=True))
    captured = capfd.readouterr()
    assert captured.err.count("passed over: ") == 1 and "1.tif cannot be read" in captured.err
    assert "24 train, 12 val images" in captured.out  # parts that cover two images, and one
    assert 0 <= results["test_last"]["miou"] <= 1
    _, metadata = load_model(out / "model.safetensors")
    assert metadata["fit"] == "tiles" and list(metadata["input_size"]) == [64, 64]
