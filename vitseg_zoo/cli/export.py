"""`vitseg export MODEL OUT`: a model for ONNX Runtime, OpenVINO or `torch.export`, compared with PyTorch."""

import argparse
from itertools import islice
from pathlib import Path

from vitseg_zoo.data.images import read_image
from vitseg_zoo.inference.export import export_model
from vitseg_zoo.inference.exported import INPUTS, load_exported
from vitseg_zoo.inference.files import find_images
from vitseg_zoo.terminal import say
from vitseg_zoo.weights.saving import load_model

# Images that 8-bit numbers are calibrated on, and pairs that their loss is measured on: as many as NNCF and
# ONNX Runtime need, and as many as make a tenth of a point visible.
_CALIBRATED = 32
_MEASURED = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vitseg export`."""
    add = parser.add_argument
    add("model", help="a file or folder with weights, a checkpoint, or a model of `vitseg list`")
    add("out", type=Path, help="the file: .onnx, .pt2 of torch.export, or .xml of OpenVINO, beside its .bin")
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="images of this size only [any, in multiples of 32]",
    )
    add("--batch", type=int, metavar="N", help="batches of N images only [any]")
    add(
        "--input",
        choices=INPUTS,
        default=INPUTS[0],
        help="float32 images that are normalized as in training, or whole numbers from 0 to 255 which the "
        "file normalizes [%(default)s]",
    )
    add("--labels", action="store_true", help="give labels (B, H, W), uint8, instead of logits")
    add(
        "--images",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="photographs, folders or patterns to compare the file with PyTorch on, and to calibrate on",
    )
    add(
        "--quantize",
        choices=["int8"],
        help="8-bit numbers, calibrated on --images or on those of --data",
    )
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="images and masks, as `vitseg train` takes them: print the mIoU of PyTorch and of the file",
    )


def run(args: argparse.Namespace) -> int:
    """Write the file, and say how it compares with PyTorch."""
    model, metadata = load_model(args.model)
    channels = metadata.get("arguments", {}).get("in_channels", 3)
    files = islice(find_images(args.images), _CALIBRATED) if args.images else []
    images = [read_image(path, channels) for path in files]
    pairs = None
    if args.data is not None:
        from vitseg_zoo.data.segmentation_folder import SegmentationFolder, load_description

        splits = list(load_description(args.data).splits)
        pairs = SegmentationFolder(args.data, "val" if "val" in splits else splits[-1])
        if not images:
            train = SegmentationFolder(args.data, splits[0])
            images = [train[index][0] for index in range(min(len(train), _CALIBRATED))]
    report = export_model(
        model,
        args.out,
        metadata,
        size=tuple(args.size) if args.size else None,
        batch=args.batch,
        input=args.input,
        labels=args.labels,
        images=images,
        quantize=args.quantize,
    )
    for agreement in report.agreements:
        say(agreement)
    takes = f"{args.size[0]} x {args.size[1]}" if args.size else "any size in multiples of 32"
    say(f"{report.path}: {args.batch or 'any number of'} images of {takes}, {args.input}")
    if report.quantized is not None:
        before, after = report.quantized.seconds
        large, small = report.quantized.megabytes
        say(
            f"int8: {before / after:.2f} times as fast ({1e3 * after:.1f} ms against {1e3 * before:.1f} ms), "
            f"{small:.1f} MB instead of {large:.1f} MB"
        )
        for agreement in report.quantized.agreements:
            say(f"int8, {agreement}")
    if pairs is not None:
        from vitseg_zoo.inference.evaluate import evaluate

        some = [pairs[index] for index in range(min(len(pairs), _MEASURED))]
        named = {**metadata, "class_names": metadata.get("class_names") or pairs.class_names}
        scores = evaluate(model, named, some, pairs.ignore_index)
        file, about = load_exported(report.path)
        found = evaluate(file, {**about, "class_names": named["class_names"]}, some, pairs.ignore_index)
        say(f"on {len(some)} images of {args.data} ({pairs.split}), PyTorch and the file, in percent:")
        for name in ["miou", *(f"iou_{name}" for name in named["class_names"])]:
            lost = 100 * (found[name] - scores[name])
            say(f"  {name:24} {100 * scores[name]:6.2f} {100 * found[name]:6.2f}  {lost:+.2f}")
    return 0
