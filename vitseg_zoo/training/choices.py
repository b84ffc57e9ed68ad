"""What `vitseg train` chooses where nobody says it: weights, rate, sizes, epochs, by data and machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from vitseg_zoo.terminal import say
from vitseg_zoo.training.config import RunConfig, option
from vitseg_zoo.weights.download import fetch
from vitseg_zoo.weights.encoder_catalog import encoder_entry

# Architectures that take a plain ViT, and those with an encoder of their own.
_TOKEN_MODELS = ("vitseg", "segmenter", "eomt")
_OWN_ENCODERS = ("segnet", "segnetdsc")


@dataclass(kw_only=True)
class ChosenConfig(RunConfig):
    """Options that `choose` fills in where they are None.

    Args:
        arch: any architecture of smp.create_model
        mode: binary: of two classes the second, by a sigmoid; by default what the data are
        encoder_name: any encoder of the zoo that fits; chosen by default, as is all that follows
        encoder_weights: as imagenet; None for random ones; auto for free ones, if they can be had
        init: start from this model: a file or a name; its classes may be others
        epochs: passes over the training images
        batch_size: images a step and device
        lr: highest learning rate
        layer_decay: of the learning rate, from block to block
        freeze: keep the encoder's embedding and this many of its blocks as they are
        image_size: side of the square that images are resized to, in pixels
        crop_size: side of what is trained on, a random part of that square resized to it
        crop: train on parts at the images' own resolution, and predict in tiles: for large images
    """

    chosen = (
        *("mode", "encoder_name", "encoder_weights", "epochs", "batch_size", "lr", "layer_decay", "freeze"),
        *("image_size", "crop_size"),
    )

    arch: str = "fusedsegformer"
    mode: Literal["multiclass", "binary", "multilabel"] | None = None
    encoder_name: str | None = None
    encoder_weights: str | None = "auto"
    init: str | None = None
    epochs: int | None = None  # type: ignore[assignment]
    batch_size: int | None = None  # type: ignore[assignment]
    lr: float | None = None  # type: ignore[assignment]
    layer_decay: float | None = None
    freeze: int | None = None
    image_size: int | None = None  # type: ignore[assignment]
    crop_size: int | None = None
    crop: bool = False


def choose(config: ChosenConfig, images: Sequence[Any], device: torch.device | None = None) -> None:
    """Fill in the options that are None, and print each with its reason.

    Args:
        config: The options, which are changed.
        images: The training data, pairs of image and mask; a few are read.
        device: What is trained on; by default a GPU where there is one.

    Raises:
        ValueError: If `mode` is multilabel and the masks are not, or the reverse.
    """
    data_mode = getattr(images, "mode", "multiclass")
    if data_mode == "multilabel":
        _set(config, "mode", data_mode, "a pixel may have several classes")
    config.mode = config.mode or "multiclass"
    if (config.mode == "multilabel") != (data_mode == "multilabel"):
        raise ValueError(
            f"the masks are {data_mode}, with which --mode {config.mode} does not go: leave it out, or "
            "correct `masks` in what vitseg check --write writes."
        )
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gigabytes = torch.cuda.get_device_properties(device).total_memory / 2**30 if device.type == "cuda" else 0
    where = f"a GPU of {gigabytes:.0f} GB" if gigabytes else "a processor"
    count = len(images)
    pretrained = _choose_weights(config, small=gigabytes < 6)
    layers_are_known = str(config.encoder_name).startswith("vz-")

    why = "for pretrained weights" if pretrained else "for random weights"
    _set(config, "lr", 3e-4 if pretrained else 1e-3, why)
    _set(config, "layer_decay", 0.75 if pretrained and layers_are_known else 1.0, why)
    if pretrained and layers_are_known and count < 100:
        _set(config, "freeze", 4, f"{count} images are few")

    sides = [np.sqrt(np.prod(images[i][0].shape[:2])) for i in range(0, count, max(1, count // 32))]
    side, most = float(np.median(sides)), 512 if gigabytes >= 6 else 256
    fitting = min(most, max(64, round(side / 32) * 32))
    why = f"images have about {side:.0f} x {side:.0f} pixels; at most {most} on {where}"
    if config.crop:
        image_size = _set(config, "crop_size", fitting, why)
        config.image_size = config.image_size or image_size  # of no meaning then
        # An epoch has as many parts as cover the images: about, as they need not be of one size.
        count *= max(1, round(side / image_size)) ** 2
    else:
        image_size = _set(config, "image_size", fitting, why)
        _set(config, "crop_size", max(64, round(image_size * 0.75 / 32) * 32), "three quarters of it")
    fits = max(2, int(gigabytes * (512 / image_size) ** 2)) if gigabytes else 16
    batch_size = min(count, _set(config, "batch_size", max(2, min(16, fits, count // 4)), f"on {where}"))

    steps = (2000 if pretrained else 4000) // (1 if gigabytes else 2)
    epochs = round(steps * batch_size * config.accumulate_grad_batches / count)
    most = 100 if pretrained else 200
    _set(
        config,
        "epochs",
        min(most, max(20, epochs)),
        f"about {steps} steps of {count} {'parts' if config.crop else 'images'}, 20 to {most} epochs",
    )


def _choose_weights(config: ChosenConfig, small: bool) -> bool:
    """Choose encoder and weights; tell whether there are any."""
    if config.init:
        _set(config, "encoder_name", "vz-mit_b0", "the packaged models' one")
        if config.encoder_weights == "auto":
            config.encoder_weights = None
        return True
    if config.arch in _OWN_ENCODERS:
        free = blank = config.arch
    elif config.arch in _TOKEN_MODELS:
        free = blank = "vz-vit_tiny_patch16_224" if small else "vz-vit_small_patch16_224"
    else:
        free, blank = ("vz-mit_pvt_b0", "vz-mit_b0") if small else ("vz-mit_pvt_b2", "vz-mit_b0")
    if config.encoder_weights != "auto":
        _set(config, "encoder_name", free if config.encoder_weights else blank, "suits the weights")
        return config.encoder_weights is not None
    name = config.encoder_name or free
    entry = encoder_entry(name.removeprefix("vz-")) if name.startswith("vz-") else None
    reason = f"the zoo knows no weights of {name}; --encoder-weights imagenet takes SMP's if it has some"
    if entry and entry.commercial_use:
        try:
            fetch(entry)
        except OSError as error:
            reason = (
                f"training starts from random weights, which takes longer and scores lower where images are "
                f"few; there are free ones ({entry.license}), but {error}"
            )
        else:
            data = f", trained on {entry.training_data}" if entry.training_data else ""
            _set(config, "encoder_name", name, "has free weights")
            config.encoder_weights = "imagenet"
            _say("encoder_weights", "imagenet", f"{entry.name}{data}, license {entry.license}")
            return True
    elif entry:
        reason = f"{entry.name} is not free ({entry.license}); --encoder-weights imagenet takes it anyway"
    config.encoder_weights = None
    _say("encoder_weights", "None", reason.rstrip("."))
    _set(config, "encoder_name", blank, "small enough to learn from random weights")
    return False


def _set(config: ChosenConfig, name: str, value: Any, reason: str) -> Any:
    """Set what nobody has said, and say why; give what it is now."""
    if getattr(config, name) is None:
        setattr(config, name, value)
        _say(name, value, reason)
    return getattr(config, name)


def _say(name: str, value: Any, reason: str) -> None:
    if rank_zero_only.rank == 0:
        say(f"chosen: {option(name)} {value} ({reason})", flush=True)
