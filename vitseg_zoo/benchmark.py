"""What models cost, side by side: time, throughput, peak memory, operations and parameters, on any device."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vitseg_zoo.cost import count_macs, processor, take_turns
from vitseg_zoo.ops.dispatch import plain_forms

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class Cost:
    """What one model costs for one batch size."""

    model: str
    parameters: int
    gmacs: float | None  # billions of multiplications with addition for one image; None if not countable
    batch: int
    p50: float | None  # seconds of a run; None if the device's memory was too small
    p95: float | None
    images_per_second: float | None
    peak_megabytes: float | None  # on CUDA: of the device's memory, weights included

    def row(self) -> str:
        """Give a row of a table under `HEADER`."""
        gmacs = "" if self.gmacs is None else f"{self.gmacs:.1f}"
        start = f"| {self.model} | {self.parameters / 1e6:.1f} | {gmacs} | {self.batch} |"
        if self.p50 is None or self.p95 is None:
            return f"{start} out of memory | | | |"
        peak = "" if self.peak_megabytes is None else f"{self.peak_megabytes:.0f}"
        return (
            f"{start} {1e3 * self.p50:.1f} | {1e3 * self.p95:.1f} | {self.images_per_second:.1f} | {peak} |"
        )


HEADER = (
    "| model | M parameters | GMACs | batch | p50, ms | p95, ms | images/s | peak, MB |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|"
)


def measure(
    models: Mapping[str, nn.Module],
    size: tuple[int, int] = (512, 512),
    batches: Sequence[int] = (1,),
    device: str | torch.device = "cpu",
    *,
    precision: str = "fp32",
    compile: str | None = None,
    channels_last: bool = False,
    train: bool = False,
    rounds: int = 10,
    warm_up: int = 3,
) -> list[Cost]:
    """Measure models that take turns, for one batch size after the other.

    Args:
        models: By name. They stay as they are; copies are measured.
        size: Height and width of the images, which are noise of three channels (or of `model.in_chans`).
        batches: Numbers of images in a run.
        device: As of torch.
        precision: `"fp32"`; `"tf32"`, which is fp32 with products in TF32 on a GPU; or autocast to `"bf16"`
            or `"fp16"`.
        compile: A mode of `torch.compile`, such as "default" or "reduce-overhead".
        channels_last: Weights and images in that memory format.
        train: Measure a step of training (forward, cross-entropy, backward, fused AdamW) instead of a run in
            inference mode.
        rounds: Runs of each model that count.
        warm_up: Runs of each model before them.

    Returns:
        A `Cost` for each batch size and model.

    Raises:
        ValueError: If there is no such precision.

    Example:
        >>> [cost] = measure({"conv": nn.Conv2d(3, 8, 3, padding=1)}, (64, 64), rounds=3)
        >>> cost.parameters, cost.gmacs, cost.p50 <= cost.p95
        (224, 0.000884736, True)
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision should be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    device = torch.device(device)
    use_tf32(precision == "tf32")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    counts = {name: count_gmacs(model, size) for name, model in models.items()}
    copies = {name: copy.deepcopy(model).train(train) for name, model in models.items()}
    costs: list[Cost] = []
    weights: dict[str, int] = {}  # bytes on the device that stay between runs
    runs: dict[str, Callable[[torch.Tensor], Any]] = {}
    for name, model in copies.items():
        before = _allocated(device)
        model.to(device, memory_format=layout)
        weights[name] = _allocated(device) - before
        compiled = torch.compile(model, mode=compile) if compile else model
        runs[name] = (_step if train else _inference)(compiled, device, precision)
    for batch in batches:
        images = torch.rand(batch, 3, *size, device=device).contiguous(memory_format=layout)
        fits: dict[str, float | None] = {}
        for name, run in runs.items():
            before = _allocated(device)
            try:
                for _ in range(2 if train else 1):  # gradients and the optimizer's state come with the first
                    run(images)
                weights[name] += _allocated(device) - before if train else 0
                fits[name] = _peak(partial(run, images), device, weights[name])
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
        functions = [partial(runs[name], images) for name in fits]
        times = dict(zip(fits, take_turns(functions, rounds, device, warm_up), strict=True))
        for name in models:
            parameters = sum(parameter.numel() for parameter in models[name].parameters())
            known = name, parameters, counts[name], batch
            if name in times:
                p50, p95 = (float(np.percentile(times[name], part)) for part in (50, 95))
                costs.append(Cost(*known, p50, p95, batch / p50, fits[name]))
            else:
                costs.append(Cost(*known, None, None, None, None))
    return costs


def count_gmacs(model: nn.Module, size: tuple[int, int] = (512, 512)) -> float | None:
    """Count the multiplications with addition for one image, in billions, by PyTorch's own counter.

    Those of convolutions, products of matrices and attention are counted, in the plain forms of operations.
    That is done on fake tensors: nothing is computed.

    Returns:
        GMACs; None of a model that does not run on those.

    Example:
        >>> round(count_gmacs(nn.Conv2d(3, 8, 3, padding=1), (64, 64)), 6)
        0.000885
    """
    try:
        model = copy.deepcopy(model).cpu().eval()  # what it keeps of a run would be fake, too
        with torch.no_grad(), plain_forms(), FakeTensorMode(allow_non_fake_inputs=True):
            return count_macs(lambda: model(torch.empty(1, 3, *size))) / 1e9
    except (RuntimeError, NotImplementedError, ValueError):
        return None


def describe_setup(device: str | torch.device) -> str:
    """Say in a line what measures: the device, PyTorch, and how fp32 products are computed.

    Example:
        >>> f"PyTorch {torch.__version__}" in describe_setup("cpu")
        True
    """
    device = torch.device(device)
    if device.type != "cuda":
        threads = torch.get_num_threads()
        return f"{processor()}, PyTorch {torch.__version__}, {threads} thread{'s' * (threads > 1)}"
    name = torch.cuda.get_device_name(device)
    is_on = torch.backends.cuda.matmul.allow_tf32
    return (
        f"{name}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}, TF32 {'on' if is_on else 'off'}"
    )


def use_tf32(switch: bool) -> None:
    """Have a GPU compute products and convolutions of fp32 in TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = switch
    torch.backends.cudnn.allow_tf32 = switch


def _inference(
    model: Callable[..., Any], device: torch.device, precision: str
) -> Callable[[torch.Tensor], Any]:
    @torch.inference_mode()
    def run(images: torch.Tensor) -> Any:
        with _autocast(device, precision):
            return model(images)

    return run


def _step(model: Any, device: torch.device, precision: str) -> Callable[[torch.Tensor], Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type != "mps")
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def run(images: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        with _autocast(device, precision):
            logits = _logits(model(images))
        target = torch.zeros(logits.shape[:1] + logits.shape[2:], dtype=torch.long, device=device)
        loss = F.cross_entropy(logits.float(), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return run


def _logits(output: Any) -> torch.Tensor:
    output = getattr(output, "logits", output)
    return output[0] if isinstance(output, tuple) else output


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak(function: Callable[[], Any], device: torch.device, own: int) -> float | None:
    """Measure the peak of memory in a run without that of the other models, in MB; None but on CUDA."""
    if device.type != "cuda":
        return None
    before = _allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return (torch.cuda.max_memory_allocated(device) - before + own) / 1e6
