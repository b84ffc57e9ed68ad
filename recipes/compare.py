"""Puts trainings of recipes/oxford_pets.py side by side: one table, one plot of curves, one picture.

    python recipes/compare.py runs/vitseg runs/unet --data DIR --out runs/comparison

--out receives table.md, curves.png and predictions.png, which shows best.ckpt of each on validation images.
"""

import argparse
from pathlib import Path

import numpy as np

from vitseg_zoo import load_model
from vitseg_zoo.data.oxford_pets import PALETTE, OxfordPets
from vitseg_zoo.data.transforms import resize
from vitseg_zoo.inference.predictor import predict_image
from vitseg_zoo.training.pictures import color, comparison, save_curves, save_png
from vitseg_zoo.training.results import comparison_table, final_scores, markdown_table, percent, read_results

COUNT = 7  # images in the picture
SIDE = 128  # of each, in pixels


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="the --out of a finished training")
    add("--names", nargs="+", help="what to call them; by default their folders' names")
    add("--data", type=Path, default="data", help="folder of oxford-iiit-pet (%(default)s)")
    add("--out", type=Path, required=True, help="folder for what is written")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    names = args.names or [run.name for run in args.runs]
    if len(set(names)) != len(args.runs):
        raise SystemExit(f"{len(args.runs)} runs need as many different --names, got: {', '.join(names)}.")
    runs = dict(zip(names, args.runs, strict=True))
    unfinished = [str(run) for run in args.runs if not (run / "results.json").is_file()]
    if unfinished:
        raise SystemExit(f"no finished training (no results.json): {', '.join(unfinished)}.")
    args.out.mkdir(parents=True, exist_ok=True)

    results = {name: read_results(run / "results.json") for name, run in runs.items()}
    head, rows = comparison_table(results)
    head += ["micro IoU without background", "epochs", "precision"]
    for row, result in zip(rows, results.values(), strict=True):
        micro_iou = final_scores(result)["micro_iou"]
        row += [percent(micro_iou), str(result["epochs"]), result["precision"]]
    table = markdown_table(head, rows)
    (args.out / "table.md").write_text(table)
    print(table, end="")

    save_curves({name: run / "metrics.csv" for name, run in runs.items()}, args.out / "curves.png")

    pets, squeeze = OxfordPets(args.data, "val"), resize(SIDE)
    pairs = [squeeze(image=image, mask=mask) for image, mask in (pets[index] for index in range(COUNT))]
    images, masks = (np.stack([pair[key] for pair in pairs]) for key in ("image", "mask"))
    predictions = {}
    for name, run in runs.items():
        model, metadata = load_model(run / "checkpoints" / "best.ckpt")
        labels = np.stack([predict_image(model, image, metadata) for image in images])
        predictions[name] = color(labels, PALETTE)
    save_png(comparison(images, color(masks, PALETTE), predictions), args.out / "predictions.png")


if __name__ == "__main__":
    main()
