"""How long to train so that it takes a given time: a few steps are timed, and epochs planned from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitseg_zoo.cost import take_turns
from vitseg_zoo.ops.memory import keep_freed_memory
from vitseg_zoo.training.module import SegmentationModule
from vitseg_zoo.training.precision import choose_precision

EPOCHS = 8  # pictures of masks being learned, where the machine is not so fast that it makes more
MOST_EPOCHS = 50  # a machine that is faster yet ends sooner
FEWEST_STEPS = 4  # of an epoch on a slow machine, which then has fewer epochs
# Of a training. After 27 of 72 steps the quickstart's U-Net had 27 % mIoU, where background alone has 24 %.
_STEPS_TO_COMPARE = 25


@dataclass(frozen=True)
class StepCost:
    """What a training step costs here."""

    seconds: float
    precision: str  # of Lightning, with which it was timed


@dataclass(frozen=True)
class Plan:
    """How long to train: so many epochs of so many steps."""

    epochs: int
    steps: int


def time_steps(module: SegmentationModule, pairs: Sequence[tuple[Tensor, Tensor]]) -> StepCost:
    """Time steps of a module that is thrown away afterwards, in the precision that is the fastest.

    Args:
        module: Its model and its loss are used, with AdamW.
        pairs: A batch as images (C, H, W) and masks (H, W).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, masks = (torch.stack(parts).to(device) for parts in zip(*pairs, strict=True))
    images = images.to(memory_format=torch.channels_last)
    precision = choose_precision(module.model, tuple(images.shape[2:]), min(len(pairs), 8))
    module.to(device).train()
    if device.type == "cpu":
        keep_freed_memory()  # as `fit` does, whose steps these stand for
    optimizer = torch.optim.AdamW(module.parameters(), 1e-6)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = module(images)
        module.loss(logits.float(), masks).backward()
        optimizer.step()
        optimizer.zero_grad()

    ((*_, seconds),) = take_turns([step], rounds=3, device=device)
    return StepCost(seconds, precision)


def plan(seconds: float, step: float, most_steps: int, validation_batches: float) -> Plan:
    """Choose epochs and steps so that a training, its validations included, takes about a given time.

    Args:
        seconds: That time.
        step: Seconds that a training step takes.
        most_steps: Steps of an epoch that sees all images.
        validation_batches: Batches of the validation that ends an epoch.

    Example:
        >>> plan(30.0, 0.2, most_steps=62, validation_batches=4)  # a validation costs less than a step
        Plan(epochs=8, steps=17)
    """
    validation = step * validation_batches / 3  # no gradients
    epochs = max(1, min(EPOCHS, int(seconds / (FEWEST_STEPS * step + validation))))
    steps = max(1, round((seconds / epochs - validation) / step))
    if steps > most_steps:  # of a fast machine
        return Plan(min(MOST_EPOCHS, round(seconds / (most_steps * step + validation))), most_steps)
    return Plan(epochs, steps)


def too_few(plans: Sequence[Plan], minutes: float) -> str:
    """Say that trainings planned for so many minutes are too short to be compared, or nothing.

    Example:
        >>> print(too_few([Plan(epochs=1, steps=5), Plan(epochs=8, steps=17)], minutes=3.0))
        One model took 5 steps, too few to compare: on a machine so slow or busy give it --minutes 15.
        >>> too_few([Plan(epochs=8, steps=17)], minutes=3.0)
        ''
    """
    fewest = min(plan.epochs * plan.steps for plan in plans)
    if fewest >= _STEPS_TO_COMPARE:
        return ""
    enough = math.ceil(minutes * _STEPS_TO_COMPARE / fewest)
    return (
        f"One model took {fewest} step{'s' * (fewest > 1)}, too few to compare: on a machine so slow or busy "
        f"give it --minutes {enough}."
    )
