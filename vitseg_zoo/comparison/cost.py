"""What each of several models costs here: the same image through all of them, in turn."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from vitseg_zoo.cost import count_macs, describe_device, peak_memory, take_turns
from vitseg_zoo.data.images import as_image
from vitseg_zoo.inference.predictor import Predictor


@dataclass(frozen=True)
class Cost:
    """Of one image, from pixels to labels at its own size, in a batch of its own.

    Args:
        parameters: Of the model.
        macs: Multiply-adds of convolutions, matrix products and attention.
        bytes: The most that tensors have at one time, without the weights.
        seconds: Median.
        hardware: Where, in words.
    """

    parameters: int
    macs: int
    bytes: int
    seconds: float
    hardware: str


def measure_costs(predictors: Mapping[str, Predictor], image: np.ndarray) -> dict[str, Cost]:
    """Measure models on one image.

    Args:
        predictors: The models by name, all on one device.
        image: (H, W, C) or (H, W), as a data set gives it.

    Returns:
        Name -> cost.

    Example:
        >>> model = Predictor("segformer_b0.pets", device="cpu")
        >>> measure_costs({"B0": model}, np.zeros((64, 96, 3), np.uint8))["B0"].parameters
        3714915
    """
    device = next(iter(predictors.values())).device
    calls = {
        name: partial(predictor, as_image(image, predictor.channels))
        for name, predictor in predictors.items()
    }
    turns = take_turns(list(calls.values()), rounds=9, device=device, budget=60.0)
    seconds = dict(zip(calls, map(median, turns), strict=True))
    return {
        name: Cost(
            sum(parameter.numel() for parameter in predictors[name].model.parameters()),
            count_macs(call),
            peak_memory(call, device),
            seconds[name],
            describe_device(device),
        )
        for name, call in calls.items()
    }
