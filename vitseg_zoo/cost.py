"""What a prediction costs: multiply-adds, memory and time."""

import gc
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

# PyTorch counts the operations of attention on GPUs only.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **kwargs: (
        sdpa_flop_count(q, k, v)
    )
}


class _TakenApart(TorchDispatchMode):
    """Takes operations apart as `nn.Linear` is into products, for torch 2.5 counts none in inference mode."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and isinstance(func, OpOverload):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


def count_macs(function: Callable[[], Any]) -> int:
    """Count the multiply-adds of convolutions, matrix products and attention.

    Args:
        function: What to count, such as a model's prediction. It is called once.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        >>> count_macs(lambda: conv(torch.rand(1, 3, 16, 16))) == 16 * 16 * 8 * 27
        True
    """
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter, _TakenApart():
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


def take_turns(
    functions: Sequence[Callable[[], Any]],
    rounds: int,
    device: str | torch.device = "cpu",
    warm_up: int = 1,
    budget: float = math.inf,
) -> list[list[float]]:
    """Time functions in turn, so that whatever else happens on the machine slows all of them.

    `torch.utils.benchmark.Timer` times one function after the other, and means of blocks.

    Args:
        functions: Called without arguments, one after the other, `rounds` times.
        rounds: Number of times that count.
        device: Where they compute. On CUDA the time is that between two events in the stream.
        warm_up: Rounds before them.
        budget: Seconds after which three rounds are enough.

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
    began = time.perf_counter()
    for turn in range(-warm_up, rounds):
        if turn >= 3 and time.perf_counter() - began > budget:
            break
        for function, seconds in zip(functions, times, strict=True):
            elapsed = clock(function, device)
            if turn >= 0:
                seconds.append(elapsed)
    return times


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
    threads = count * torch.get_num_threads()
    return f"{threads} thread{'s' * (threads != 1)} of {processor()}"


def processor() -> str:
    """Name the processor, as far as the system does.

    Example:
        >>> bool(processor())
        True
    """
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return name


def _cuda_events(function: Callable[[], Any], device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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
