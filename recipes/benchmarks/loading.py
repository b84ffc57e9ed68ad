"""What reading and augmenting costs, stage by stage, on one core of this machine, as Markdown.

    python recipes/benchmarks/loading.py DIR --image-size 256 512

DIR has any layout that `vitseg check DIR` understands. Each row is the median of rounds that take turns, in
processor time of one thread: so many images does one worker process prepare in a second, alone on a core.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import cv2
import numpy as np
from PIL import Image
from vitseg_zoo.recipes.own_data import augmentation

from vitseg_zoo.data.crops import CropDataset
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.segmentation_folder import SegmentationFolder
from vitseg_zoo.terminal import say
from vitseg_zoo.training.data_module import collate

ROUNDS = 5


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--image-size", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--count", type=int, default=64, help="images")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    source = SegmentationFolder(args.data, "train")
    count = min(args.count, len(source))
    stages: dict[str, Callable[[int], object]] = {
        "decode the image, Pillow": lambda i: _by_pillow(source, i),
        "decode image and mask": lambda i: source[i],
    }
    for size in args.image_size:
        decoded = [source[i] for i in range(count)]
        resized = SegmentationDataset(decoded, size, len(source.class_names), source.ignore_index)
        options = {"classes": len(source.class_names), "ignore_index": source.ignore_index}
        kept = SegmentationDataset(decoded, size, augment=augmentation(size), **options).cache()
        crops = CropDataset(decoded, size, augment=augmentation(size, crop=True), **options).cache()
        batch = [kept.augmented(i) for i in range(16)]
        stages |= {
            f"resize to {size}": lambda i, resized=resized: resized.plain(i),
            f"augment at {size}": lambda i, kept=kept: kept.augmented(i),
            f"crop and augment at {size}": lambda i, crops=crops: crops.augmented(i % len(crops)),
            f"collate at {size}": lambda i, batch=batch: collate(batch) if i % 16 == 0 else None,
        }
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(ROUNDS):
        for name, run in stages.items():
            started = time.thread_time()
            for i in range(count // 16 * 16):
                run(i)
            seconds[name].append((time.thread_time() - started) / (count // 16 * 16))
    height, width = np.median([source.size(i) for i in range(count)], 0)
    say(f"{count} images of about {height:.0f} x {width:.0f}:")
    for line in ("", "| stage | images a second and core |", "|---|---:|"):
        say(line)
    for name, values in seconds.items():
        say(f"| {name} | {1 / median(values):.0f} |")


def _by_pillow(source: SegmentationFolder, index: int) -> np.ndarray:
    path = source.description.root / source.pairs[index].image
    with Image.open(path, formats=["JPEG", "PNG", "TIFF"]) as image:
        return np.asarray(image.convert("RGB"))


if __name__ == "__main__":
    main()
