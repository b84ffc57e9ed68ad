"""What a prediction costs: multiply-adds, memory and time."""

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

# PyTorch counts the operations of attention on GPUs only.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **kwargs: (
        sdpa_flop_count(q, k, v)
    )
}


def count_macs(function: Callable[[], Any]) -> int:
    """Count the multiply-adds of convolutions, matrix products and attention.

    Args:
        function: What to count, such as a model's prediction. It is called once.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        >>> count_macs(lambda: conv(torch.rand(1, 3, 16, 16))) == 16 * 16 * 8 * 27
        True
    """
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        function()
    return counter.get_total_flops() // 2


def peak_memory(function: Callable[[], Any], device: torch.device) -> int:
    """Return the most memory, in bytes, that the tensors a function makes have at one time.

    Args:
        function: It is called twice; the first call loads what is loaded once.
        device: Where it runs: CUDA or the CPU.

    Example:
        >>> x = torch.rand(1000, 1000)
        >>> peak_memory(lambda: (x + 1).sum(), torch.device("cpu")) // 4000
        1000
    """
    function()
    gc.collect()  # what is freed meanwhile would count against what is made
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of its start and stop
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def time_in_turns(
    functions: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int = 9, budget: float = 60.0
) -> dict[str, float]:
    """Return the median seconds of functions that run in turn, so that a busy machine slows all alike.

    Args:
        functions: What to run, by name. Each runs once without counting.
        device: Where they run; CUDA is waited for.
        rounds: How often each counts, at most.
        budget: Seconds after which three rounds are enough.

    Example:
        >>> calls = {"short": lambda: 0, "long": lambda: time.sleep(0.01)}
        >>> seconds = time_in_turns(calls, torch.device("cpu"))
        >>> seconds["long"] > 0.01 > seconds["short"]
        True
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    for index in range(rounds + 1):
        if index > 3 and time.perf_counter() - began > budget:
            break
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if index:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def describe_device(device: torch.device, count: int = 1) -> str:
    """Say what something ran on.

    Args:
        device: The device, or the first of several alike.
        count: How many.

    Example:
        >>> " of " in describe_device(torch.device("cpu"))
        True
    """
    if device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    threads = count * torch.get_num_threads()
    return f"{threads} thread{'s' * (threads != 1)} of {name}"
