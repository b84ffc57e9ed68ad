"""Predicts any number of images on any number of machines: the same `Predictor`, under Ray Data.

    python recipes/predict_ray.py PHOTOS --out masks                              # this machine
    python recipes/predict_ray.py list.txt --out masks --weights model.safetensors --workers 8 --gpus 1
    RAY_ADDRESS=HOST:6379 python recipes/predict_ray.py PHOTOS --out masks --format parquet

Needs the extra `ray`. PHOTOS is a folder, with all below it, or a text file with one path a line; every
machine has to see the images and, for PNG, the folder of masks. Each worker loads the model once. What is
done stays done: started again, it goes on with the rest. As PNG a mask is what `vitseg predict` writes; as
Parquet a row is an image's path, height and width, and the mask as the bytes of a PNG. Copy and edit it.
"""

import argparse
import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported: it would call home

import ray
import ray.data


class Segment:
    """A worker: paths in, masks out; an image that cannot be read or written is a row with an `error`."""

    def __init__(self, weights: str, out: str, kind: str) -> None:
        from vitseg_zoo import Predictor

        self.predictor, self.out, self.kind = Predictor(weights), Path(out), kind
        if self.predictor.multilabel:
            raise ValueError(f"{weights} is multi-label: `vitseg predict` writes a mask a class.")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        rows = [
            self._predict(str(path), str(name))
            for path, name in zip(batch["path"], batch["name"], strict=True)
        ]
        return {key: [row[key] for row in rows] for key in rows[0]}

    def _predict(self, path: str, name: str) -> dict[str, Any]:
        from vitseg_zoo.files import atomic_path
        from vitseg_zoo.inference.outputs import palette_image

        row: dict[str, Any] = {"path": path, "height": 0, "width": 0, "mask": b"", "error": ""}
        try:
            labels = self.predictor(path).labels
            mask = palette_image(labels, self.predictor.palette)
            if self.kind == "png":
                with atomic_path(self.out / f"{name}_mask.png") as partial:
                    mask.save(partial, format="PNG")
            else:
                file = io.BytesIO()
                mask.save(file, format="PNG")
                row["mask"] = file.getvalue()
            row["height"], row["width"] = labels.shape
        except (ValueError, OSError) as error:
            row["error"] = str(error)
        return row


def find(images: Path) -> dict[str, str]:
    """Image -> what its mask is called after: its path in the folder, or in a list its whole path."""
    from vitseg_zoo.inference.files import find_images

    if images.is_dir():
        return {str(path.resolve()): name.as_posix() for path, name in find_images([images]).items()}
    paths = [line.strip() for line in images.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {path: Path(path).with_suffix("").as_posix().lstrip("/").replace("../", "") for path in paths}


def find_done(names: dict[str, str], out: Path, kind: str) -> set[str]:
    """Images that an earlier run has finished; those with an error are tried again."""
    if kind == "png":
        return {path for path, name in names.items() if (out / f"{name}_mask.png").is_file()}
    if not any(out.glob("*.parquet")):
        return set()
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(out, format="parquet").to_table(["path", "error"]).to_pylist()
    return {row["path"] for row in table if not row["error"]}


def main(arguments: list[str] | None = None) -> int:
    """Predict, and say what came of it; 1 if an image could not be read or written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, metavar="PHOTOS")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--weights", default="segformer_b0.pets", help="a file, which every machine has, or a name"
    )
    parser.add_argument("--format", choices=["png", "parquet"], default="png")
    parser.add_argument("--workers", type=int, default=2, help="models in memory, on all machines together")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker; 0.5 lets two share one")
    parser.add_argument("--batch", type=int, default=16, help="images that a worker is given at once")
    args = parser.parse_args(arguments)

    names, out = find(args.images), args.out.resolve()
    done = find_done(names, out, args.format)
    print(f"{len(names)} images, of which {len(done)} are done")
    rows = [{"path": path, "name": name} for path, name in names.items() if path not in done]
    if not rows:
        return 0
    weights = str(Path(args.weights).resolve()) if Path(args.weights).exists() else args.weights
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    segmented = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // args.batch)).map_batches(
        Segment,
        fn_constructor_args=(weights, str(out), args.format),
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        batch_size=args.batch,
        num_gpus=args.gpus,
    )
    if args.format == "parquet":
        segmented.write_parquet(str(out))
        failed = set(names) - find_done(names, out, args.format)
    else:
        errors = {
            row["path"]: row["error"] for row in segmented.select_columns(["path", "error"]).iter_rows()
        }
        failed = {path for path, error in errors.items() if error}
        for error, count in Counter(error for error in errors.values() if error).items():
            print(f"{count} x {error}" if count > 1 else error)
    print(f"{len(rows) - len(failed)} images predicted, {len(failed)} failed: {out}")
    for path in sorted(failed)[:20]:
        print(f"failed: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
