"""What models cost: times of runs that take turns, peak memory, operations and parameters, on any device."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def take_turns(
    functions: Sequence[Callable[[], Any]], rounds: int, device: str | torch.device = "cpu", warm_up: int = 1
) -> list[list[float]]:
    """Time functions in turn, so that whatever else happens on the machine slows all of them.

    `torch.utils.benchmark.Timer` times one function after the other, and means of blocks.

    Args:
        functions: Called without arguments, one after the other, `rounds` times.
        rounds: Number of times that count.
        device: Where they compute. On CUDA the time is that between two events in the stream.
        warm_up: Rounds before them.

    Returns:
        For each function the seconds of each round.

    Example:
        >>> fast, slow = take_turns([lambda: None, lambda: time.sleep(0.01)], rounds=3)
        >>> len(fast), min(fast) < min(slow)
        (3, True)
    """
    device = torch.device(device)
    clock = _cuda_events if device.type == "cuda" else _synchronized
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(-warm_up, rounds):
        for function, seconds in zip(functions, times, strict=True):
            elapsed = clock(function, device)
            if turn >= 0:
                seconds.append(elapsed)
    return times


def _cuda_events(function: Callable[[], Any], device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _synchronized(function: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - start
