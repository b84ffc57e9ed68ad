"""`vitseg bench segformer`: SegFormer of this package against SMP's and Hugging Face's, as ratios.

Both models of a pair have the same weights and run in one process. Their runs alternate and medians are
compared, so that a busy machine slows both; the ratios are what to look at, the milliseconds only say what
they are ratios of. Each pair has a process of its own: memory that one leaves to the allocator would make
the next one faster. Memory is measured in a process for each model and task.

The limit is the time that the machine would need if all operations of convolutions, matrix products and
attention went at the rate of a large matrix product, and input and output at the rate of copying.
"""

import copy
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitseg_zoo.cost import CPU_ATTENTION, take_turns
from vitseg_zoo.ops.linear import HAS_BF16
from vitseg_zoo.terminal import say

# Depths and channels are those of the paper; the head has 256 channels for B0 and B1, 768 for the others.
_HEAD_CHANNELS = {"b0": 256, "b1": 256}
_HUGGING_FACE_DEPTHS = {
    "b0": [2, 2, 2, 2],
    "b1": [2, 2, 2, 2],
    "b2": [3, 4, 6, 3],
    "b3": [3, 4, 18, 3],
    "b4": [3, 8, 27, 3],
    "b5": [3, 6, 40, 3],
}


def run(models: Sequence[str], rounds: int, quick: bool) -> int:
    """Measure and print the table.

    Args:
        models: Some of "b0" to "b5".
        rounds: Runs of each model in a pair.
        quick: Measure at 512 x 512 only, without training and memory.
    """
    import transformers  # noqa: F401  if it is missing, say so now, not after minutes

    torch.set_num_threads(2)
    say(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, medians of {rounds} runs")
    say()
    say("| model | against, what | peer | here | ratio | limit |")
    say("|---|---|---:|---:|---:|---:|", flush=True)
    for name in models:
        _in_a_new_process(_bench_smp, name, rounds, quick)
        if not quick:
            _bench_memory(name)
        _in_a_new_process(_bench_hugging_face, name, rounds)
    return 0


def _in_a_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process of its own; what it returns or raises comes back."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def smp_pair(name: str, classes: int = 150) -> tuple[nn.Module, nn.Module]:
    """Build `smp.Segformer` and `smp.FusedSegformer` with the same random weights."""
    import segmentation_models_pytorch as smp

    from vitseg_zoo.architectures import FusedSegformer

    options = {
        "encoder_weights": None,
        "classes": classes,
        "decoder_segmentation_channels": _HEAD_CHANNELS.get(name, 768),
    }
    peer = smp.Segformer(f"mit_{name}", **options)
    ours = FusedSegformer(f"vz-mit_{name}", **options)
    ours.load_state_dict(peer.state_dict())
    return peer.eval(), ours.eval()


def hugging_face_pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Build Hugging Face's SegFormer and its accelerated copy."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    from vitseg_zoo.acceleration import accelerate

    config = SegformerConfig(
        depths=_HUGGING_FACE_DEPTHS[name],
        hidden_sizes=[32, 64, 160, 256] if name == "b0" else [64, 128, 320, 512],
        decoder_hidden_size=_HEAD_CHANNELS.get(name, 768),
        num_labels=150,
    )
    peer = SegformerForSemanticSegmentation(config).eval()
    return peer, accelerate(copy.deepcopy(peer))


def alternate(peer: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Run two functions in turn, once without counting; give their medians in seconds."""
    times = take_turns([peer, ours], rounds)
    return statistics.median(times[0]), statistics.median(times[1])


def _row(name: str, what: str, peer: float, ours: float, limit: float | None = None) -> None:
    of_limit = "" if limit is None else f"{1e3 * limit:.0f} ms"
    times = f"{1e3 * peer:.0f} ms | {1e3 * ours:.0f} ms | **{peer / ours:.1f}**"
    say(f"| {name.upper()} | {what} | {times} | {of_limit} |", flush=True)


def _bench_smp(name: str, rounds: int, quick: bool) -> None:
    torch.set_num_threads(2)
    peer, ours = smp_pair(name)
    for size in (512,) if quick else (512, 1024, 2048):
        _bench_size(name, peer, ours, size, rounds if size == 512 else min(rounds, 3))
    if not quick:
        del peer, ours
        _bench_training(name, rounds)


@torch.inference_mode()
def _bench_hugging_face(name: str, rounds: int) -> None:
    torch.set_num_threads(2)
    image = torch.rand(1, 3, 512, 512)
    peer, ours = hugging_face_pair(name)
    pair = alternate(lambda: peer(image), lambda: ours(image), rounds)
    _row(name, "Hugging Face, logits of a quarter, 512", *pair, _limit(lambda: ours(image).logits, image))


@torch.inference_mode()
def _bench_size(name: str, peer: nn.Module, ours: nn.Module, size: int, rounds: int) -> None:
    from vitseg_zoo.inference.predict_labels import predict_labels

    image = torch.rand(1, 3, size, size)
    pair = alternate(lambda: peer(image), lambda: ours(image), rounds)
    _row(name, f"SMP, logits, {size}", *pair, _limit(lambda: ours(image), image))
    pair = alternate(lambda: peer(image).argmax(1), lambda: predict_labels(ours, image), rounds)
    _row(name, f"SMP, labels, {size}", *pair, _limit(lambda: predict_labels(ours, image), image))
    if size == 512 and HAS_BF16:  # emulated, it takes minutes
        with torch.autocast("cpu", torch.bfloat16):
            pair = alternate(lambda: peer(image), lambda: ours(image), rounds)
            limit = _limit(lambda: ours(image), image)
        _row(name, f"SMP, logits, bf16 autocast, {size}", *pair, limit)


def _limit(function: Callable[[], torch.Tensor], image: torch.Tensor) -> float:
    """Give this machine's limit for a function of an image, in seconds; the module says what it is."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        output = function()
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    if torch.is_autocast_enabled("cpu"):
        a, b = a.bfloat16(), b.bfloat16()
    multiply, copying = alternate(lambda: a @ b, lambda: output.clone(), 5)
    limit = counter.get_total_flops() * multiply / (2 * 2048**3)
    return limit + (image.nbytes + output.nbytes) * copying / (2 * output.nbytes)


def _training_step(model: nn.Module, size: int = 512) -> Callable[[], torch.Tensor]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    image, labels = torch.rand(2, 3, size, size), torch.randint(21, (2, size, size))

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(image), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _bench_training(name: str, rounds: int) -> None:
    peer, ours = smp_pair(name, classes=21)
    pair = alternate(_training_step(peer), _training_step(ours), rounds)
    with torch.no_grad():
        image = torch.rand(2, 3, 512, 512)
        limit = _limit(lambda: ours(image), image)
    # The gradients of maps and of weights are as many operations again each.
    _row(name, "SMP, training step, batch 2, 512", *pair, 3 * limit)


def _bench_memory(name: str) -> None:
    for task in ("training", "512", "1024", "2048"):
        peer, ours = (_in_a_new_process(_peak_megabytes, name, task, side) for side in ("peer", "ours"))
        what = "training step, batch 2, 512" if task == "training" else f"labels, {task}"
        row = f"| {name.upper()} | SMP, memory, {what} | {peer:.0f} MB | {ours:.0f} MB |"
        say(f"{row} **{peer / ours:.1f}** | |", flush=True)


def _peak_megabytes(name: str, task: str, side: str) -> float:
    """Measure how far a task raises this process's peak of resident memory, after one with a small image."""
    torch.set_num_threads(2)
    peer, ours = smp_pair(name, classes=21 if task == "training" else 150)
    model = peer if side == "peer" else ours
    for size in (64, 512 if task == "training" else int(task)):  # the small one loads code and kernels
        before = _peak_resident()
        if task == "training":
            step = _training_step(model, size)
            step()
            step()
        else:
            _predict(model, side, torch.rand(1, 3, size, size))
    return _peak_resident() - before


@torch.inference_mode()
def _predict(model: nn.Module, side: str, image: torch.Tensor) -> torch.Tensor:
    from vitseg_zoo.inference.predict_labels import predict_labels

    return model(image).argmax(1) if side == "peer" else predict_labels(model, image)


def _peak_resident() -> float:
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
