"""Trains a segmentation model on your own images and masks, to a recipe that makes the most of few images.

    python recipes/own_data.py --data DIR --out runs/mine
    vitseg predict photo.jpg --weights runs/mine/model.safetensors --out masks

DIR holds train/images/NAME.jpg, train/masks/NAME.png, the same under val, and classes.txt, a class a line;
the values of a mask are the numbers of the lines, from 0. All files are checked before the training starts.
Another layout is a sequence of pairs (image, mask) in place of `ImageFolders`; --pets reads the Oxford-IIIT
Pet data set that way. --out receives model.safetensors, which says all about itself, metrics.csv, curves.png,
predictions.png, training.gif and results.json. No epoch is selected: the model is the average of the last
weights (EMA). Copy this file and edit it.
"""

import argparse
import json
import logging
import shlex
import sys
import warnings
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from vitseg_zoo import load_model, save_model
from vitseg_zoo.data import oxford_pets
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.folders import ImageFolders
from vitseg_zoo.data.transforms import crop_flip_jitter
from vitseg_zoo.inference.evaluate import evaluate
from vitseg_zoo.palette import distinct_colors
from vitseg_zoo.training.callbacks import EpochLog, PredictionGallery
from vitseg_zoo.training.checkpoints import AtomicCheckpointIO
from vitseg_zoo.training.config import (
    make_writable,
    natural_int,
    one_line_errors,
    positive_float,
    positive_int,
    try_size,
)
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import FineTuningModule, weight_averaging
from vitseg_zoo.training.parameter_groups import freeze_blocks
from vitseg_zoo.training.pictures import save_curves
from vitseg_zoo.training.precision import choose_precision
from vitseg_zoo.training.results import hardware, save_results, training_seconds, versions
from vitseg_zoo.weights.loading import load_weights
from vitseg_zoo.weights.metadata import describe_model

ARCH, ENCODER_NAME = "fusedsegformer", "vz-mit_b0"
IMAGE_SIZE = 256  # images are resized to this square when predicted
CROP_SIZE = 192  # and to this one, as random parts, when trained on
EPOCHS = 100
BATCH_SIZE = 16
LEARNING_RATE = 1e-3  # for random weights; about 1e-4 for pretrained ones, with --layer-decay 0.75
EMA_DECAY = 0.998  # weights of the last 500 steps or so are averaged
SEED = 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the data")
    add("--pets", action="store_true", help="the data are the Oxford-IIIT Pet data set")
    add("--splits", nargs=2, default=["train", "val"], help="parts to train on and to measure on (train val)")
    add("--ignore-index", type=int, help="mask value of pixels without a label, such as 255")
    add("--out", type=Path, required=True, help="folder for everything that is written")
    add("--arch", default=ARCH, help="any architecture of smp.create_model (%(default)s)")
    add("--encoder-name", default=ENCODER_NAME, help="any encoder of the zoo that fits (%(default)s)")
    add("--encoder-weights", help="pretrained weights, as imagenet; by default random ones")
    add("--model-args", type=json.loads, default={}, help="further arguments of the architecture, as JSON")
    add("--init", help="start from this model: a file or a name of the catalog; its classes may be others")
    add("--epochs", type=positive_int, default=EPOCHS, help="(%(default)s)")
    add("--batch-size", type=positive_int, default=BATCH_SIZE, help="at most (%(default)s)")
    add(
        "--lr",
        type=positive_float,
        default=LEARNING_RATE,
        help="highest learning rate of AdamW (%(default)s)",
    )
    add(
        "--layer-decay",
        type=positive_float,
        default=1.0,
        help="of the learning rate, from block to block (%(default)s)",
    )
    add(
        "--freeze",
        type=natural_int,
        help="keep the encoder's embedding and this many of its blocks as they are",
    )
    add("--grad-checkpointing", action="store_true", help="less memory, more time")
    add("--image-size", type=positive_int, default=IMAGE_SIZE, help="(%(default)s)")
    add("--crop-size", type=positive_int, default=CROP_SIZE, help="(%(default)s)")
    add("--precision", default="auto", help="Lightning's, as 32-true or bf16-mixed; auto takes the faster")
    add("--about", type=Path, help="JSON file of what else is said of the model: license, limits, ...")
    add("--seed", type=natural_int, default=SEED, help="(%(default)s)")
    return parser.parse_args()


@one_line_errors()
def prepare(args: argparse.Namespace) -> tuple[ImageFolders, SegmentationDataModule, FineTuningModule, dict]:
    """Makes all that a training needs, and finds what is wrong before its first step.

    Returns:
        The images to measure on, the data, the module, and what is to be said of the model.
    """
    if (args.out / "metrics.csv").exists():
        raise ValueError(f"{args.out} holds an earlier training: give another --out.")
    make_writable(args.out)
    about = read_about(args.about) if args.about else {}
    if args.pets:
        sources = [oxford_pets.OxfordPets(args.data, split) for split in args.splits]
        class_names, palette = oxford_pets.CLASS_NAMES, oxford_pets.PALETTE
    else:
        sources = [ImageFolders(args.data, split, args.ignore_index).check() for split in args.splits]
        class_names = sources[0].class_names
        palette = distinct_colors(len(class_names))
    options = {"classes": len(class_names), "ignore_index": args.ignore_index, "seed": args.seed}
    train = SegmentationDataset(
        sources[0], args.image_size, augment=crop_flip_jitter(args.crop_size), **options
    )
    val = SegmentationDataset(sources[1], args.image_size, **options)
    data = SegmentationDataModule(train, val, None, min(args.batch_size, len(train)), seed=args.seed)

    module = FineTuningModule(
        args.arch,
        args.encoder_name,
        args.encoder_weights,
        class_names,
        palette,
        args.image_size,
        ignore_index=args.ignore_index,
        learning_rate=args.lr,
        layer_decay=args.layer_decay,
        seed=args.seed,
        model_args=args.model_args,
    )
    if args.init:
        print(load_weights(module.model, args.init, strict=False))
    if args.freeze is not None:
        freeze_blocks(module.model, args.freeze)
    if args.grad_checkpointing:
        if not hasattr(module.model.encoder, "set_grad_checkpointing"):
            raise ValueError(
                f"{args.encoder_name} cannot do gradient checkpointing: leave --grad-checkpointing out, "
                "or take an encoder of the zoo (vz-...)."
            )
        module.model.encoder.set_grad_checkpointing()
    about = {
        "class_names": list(class_names),
        "palette": [list(color) for color in palette],
        "mean": module.mean.expand(1, 3, 1, 1).flatten().tolist(),
        "std": module.std.expand(1, 3, 1, 1).flatten().tolist(),
        "input_size": [args.image_size, args.image_size],
        "recipe": shlex.join(["python", *sys.argv]),
        "metric_source": "recipes/own_data.py: one confusion matrix over all pixels, no epoch selected",
        **about,
    }
    describe_model(module.model, about)
    try_size(module, args.crop_size, "--crop-size")
    try_size(module, args.image_size, "--image-size")
    for dataset in (train, val):
        dataset.cache()  # reads all images
    return sources[1], data, module, about


def read_about(path: Path) -> dict:
    """Reads what is said of the model."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(about, dict):
        raise ValueError(f'{path} should hold a JSON object, as {{"license": "cc0-1.0"}}.')
    return about


def main() -> None:
    args = parse_arguments()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its greeting and hints
    warnings.filterwarnings("ignore", message=".*LeafSpec|.*does not have many workers|.*is not empty")
    seed_everything(args.seed, verbose=False)
    images, data, module, about = prepare(args)
    precision = args.precision
    if precision == "auto":
        precision = choose_precision(module.model, (args.crop_size, args.crop_size), data.batch_size)
    with one_line_errors():
        trainer = Trainer(
            max_epochs=args.epochs,
            precision=precision,
            callbacks=[
                EpochLog(args.out / "metrics.csv"),
                PredictionGallery(data.datasets["val"], args.out),  # before EMA, whose weights it shows
                weight_averaging(EMA_DECAY),
                ModelCheckpoint(args.out, "last", save_on_train_epoch_end=True, enable_version_counter=False),
            ],
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
            check_val_every_n_epoch=max(1, args.epochs // 10),
            logger=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    print(
        f"{len(data.datasets['train'])} images to train on in batches of {data.batch_size}, "
        f"{len(images)} to measure on, precision {precision}",
        flush=True,
    )
    trainer.fit(module, data)
    if not trainer.is_global_zero:
        return

    path = save_model(module.model, args.out / "model.safetensors", half=True, **about)
    scores = evaluate(*load_model(path), images, args.ignore_index)  # of the file, at the images' own size
    about["metric"] = (
        f"mIoU {100 * scores['miou']:.1f} %, pixel accuracy {100 * scores['pixel_accuracy']:.1f} % "
        f"on the {len(images)} images of {args.splits[1]}, at their own size"
    )
    save_model(module.model, path, half=True, **about)
    save_curves({"": args.out / "metrics.csv"}, args.out / "curves.png")
    results = {
        "arch": args.arch,
        "encoder_name": args.encoder_name,
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "epochs": trainer.current_epoch,
        "test_last": scores,
        "seconds": training_seconds(args.out / "metrics.csv"),
        "precision": precision,
        "hardware": hardware(trainer),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
    }
    save_results(results, args.out / "results.json")
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
