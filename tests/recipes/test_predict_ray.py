"""The Ray recipe on a local Ray with two workers, against the same `Predictor` in this process."""

import importlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitseg_zoo import Predictor

ray = pytest.importorskip("ray")
pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")
pytest.importorskip("pyarrow.dataset")
MODEL = "vitseg_tiny.pets"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_workers_go_on_where_they_ended(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = importlib.import_module("vitseg_zoo.recipes.predict_ray")
    photos, labels = tmp_path / "photos", {}
    for index in range(6):
        path = photos / ("sub" if index % 2 else ".") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    predictor = Predictor(MODEL, "cpu")
    for path in photos.rglob("*.png"):
        labels[str(path.resolve())] = predictor(path).labels
    (photos / "bad.jpg").write_text("no image")
    done = sorted(labels)[:2]  # by an earlier run
    for number, path in enumerate(done):
        name = Path(path).relative_to(photos.resolve()).with_suffix("")
        mask, file = tmp_path / "png" / f"{name}_mask.png", io.BytesIO()
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels[path]).save(mask)
        Image.fromarray(labels[path]).save(file, "PNG")
        row = {"path": path, "height": 40, "width": 50, "mask": file.getvalue(), "error": ""}
        (tmp_path / "parquet").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([row]), tmp_path / "parquet" / f"{number}.parquet"
        )
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for kind in ("png", "parquet"):
            out = tmp_path / kind
            options = ["--out", str(out), "--format", kind, "--weights", MODEL, "--batch", "2"]
            assert recipe.main([str(photos), *options]) == 1  # for the bad one
            said = capsys.readouterr().out
            assert "7 images, of which 2 are done" in said and "4 images predicted, 1 failed" in said
            assert "bad.jpg" in said
        for path, expected in labels.items():
            name = Path(path).relative_to(photos.resolve()).with_suffix("")
            mask = Image.open(tmp_path / "png" / f"{name}_mask.png", formats=["PNG"])
            np.testing.assert_array_equal(np.asarray(mask), expected)
        rows = pyarrow.dataset.dataset(tmp_path / "parquet").to_table().to_pylist()
        rows = [row for row in rows if not row["error"]]
        assert sorted(row["path"] for row in rows) == sorted(labels)
        for row in rows:
            np.testing.assert_array_equal(
                np.asarray(Image.open(io.BytesIO(row["mask"]), formats=["PNG"])), labels[row["path"]]
            )
    finally:
        ray.shutdown()


def test_a_listing_names_masks_by_whole_paths(tmp_path: Path) -> None:
    recipe = importlib.import_module("vitseg_zoo.recipes.predict_ray")
    (tmp_path / "list.txt").write_text("/data/a/cat.jpg\n\n../b/cat.png\n")
    assert list(recipe.find(tmp_path / "list.txt").values()) == ["data/a/cat", "b/cat"]
