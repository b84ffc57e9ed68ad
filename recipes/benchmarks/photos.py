"""A folder of photos: `vitseg predict` against the loop that anybody writes over SMP, as whole processes.

    python recipes/benchmarks/photos.py [FOLDER] [--model b0 | unet] [--rounds 5] [--threads 2]

Both read one file of weights, of SMP's model (random ones, 150 classes), and write a mask of each photo's
size. They take turns. Wall-clock and processor time and peak memory are of the whole process, with its start
and its imports: medians, and medians of the ratios of neighboring runs. Without FOLDER there are 200 drawn
animals of 640 x 480.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLASSES, SIZE = 150, 512
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODELS = {"b0": ("segformer", "mit_b0"), "unet": ("unet", "resnet34")}


def smp_loop(model_name: str, weights: str, folder: str, out: str) -> None:
    """The obvious loop: nothing of the zoo is imported."""
    import numpy as np
    import segmentation_models_pytorch as smp
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    model = smp.create_model(*MODELS[model_name], encoder_weights=None, classes=CLASSES).eval()
    model.load_state_dict(load_file(weights))
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    for path in sorted(Path(folder).iterdir()):
        photo = Image.open(path).convert("RGB")
        pixels = torch.from_numpy(np.array(photo.resize((SIZE, SIZE)))).permute(2, 0, 1) / 255
        with torch.no_grad():
            labels = model(((pixels - mean) / std)[None]).argmax(1)[0]
        mask = Image.fromarray(labels.numpy().astype(np.uint8))
        mask.resize(photo.size, Image.Resampling.NEAREST).save(Path(out, f"{path.stem}.png"))


def save_weights(model_name: str, path: Path) -> None:
    import segmentation_models_pytorch as smp
    import torch

    import vitseg_zoo

    torch.manual_seed(0)
    model = smp.create_model(*MODELS[model_name], encoder_weights=None, classes=CLASSES)
    vitseg_zoo.save_model(model, path, mean=MEAN, std=STD, input_size=(SIZE, SIZE))


def draw_photos(folder: Path, count: int) -> None:
    from PIL import Image

    from vitseg_zoo.data.synthetic import SyntheticPets

    folder.mkdir()
    for index, (picture, _) in enumerate(SyntheticPets(count, image_size=640)):
        Image.fromarray(picture[80:560]).save(folder / f"{index:03d}.jpg", quality=90)


def measure(command: list[str], threads: int) -> tuple[float, float, float]:
    """Return wall-clock seconds, processor seconds and megabytes of a process.

    Linux counts the memory of the process that starts it, too: this one imports nothing large.
    """
    start = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    peak = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", help="JPEGs, PNGs")
    parser.add_argument("--model", default="b0", choices=["b0", "unet"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=200, help="of drawn photos")
    parser.add_argument("--loop", nargs=2, metavar=("WEIGHTS", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--prepare", metavar="WEIGHTS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        return smp_loop(args.model, args.loop[0], args.folder, args.loop[1])
    if args.prepare:
        save_weights(args.model, Path(args.prepare))
        return None if Path(args.folder).exists() else draw_photos(Path(args.folder), args.count)
    with tempfile.TemporaryDirectory() as work:
        weights, photos = Path(work, "model.safetensors"), Path(args.folder or Path(work, "photos"))
        this = [sys.executable, __file__, str(photos), "--model", args.model]
        measure([*this, "--prepare", str(weights), "--count", str(args.count)], args.threads)
        ours = [sys.executable, "-m", "vitseg_zoo.cli", "predict", str(photos), "--weights", str(weights)]
        ours += ["--out", f"{work}/ours", "--outputs", "mask", "--overwrite", "--device", "cpu"]
        loop = [*this, "--loop", str(weights), f"{work}/loop"]
        Path(work, "loop").mkdir()
        pairs = [(measure(ours, args.threads), measure(loop, args.threads)) for _ in range(args.rounds)]
    print("| | `vitseg predict` | the loop | loop / ours |\n|---|---:|---:|---:|")
    for index, what in enumerate(["wall clock, s", "processor, s", "peak memory, MB"]):
        mine, its = ([pair[who][index] for pair in pairs] for who in (0, 1))
        ratio = statistics.median(b / a for a, b in zip(mine, its, strict=True))
        print(f"| {what} | {statistics.median(mine):.1f} | {statistics.median(its):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
