"""Counts what a model does on a GPU, without one: kernels, bytes, layout copies and waits.

Models run on fake CUDA tensors. The counts are exact and the same on every machine, for one version of torch.
They say how much work there is, not how long it takes. `python tests/gpu_counts.py` writes the table that
`test_gpu_counts.py` compares, `python tests/gpu_counts.py memory` prints that of docs/how_to/gpu.md.
"""

import csv
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import segmentation_models_pytorch as smp
import timm
import tiny_vits  # noqa: F401  registers its models
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ("kernels", "bytes", "layout_copies", "waits")
# Whose kernels a table counts: another release may call others.
VERSIONS = f"torch {torch.__version__.split('+')[0]} timm {timm.__version__} smp {smp.__version__}"

_FREE = [
    "detach",
    "alias",
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "_unsafe_view",
    "lift_fresh",
]
# Of an operation that is more than one kernel.
_KERNELS = {
    "native_layer_norm_backward": 3,
    "upsample_bilinear2d_backward": 2,
    "nll_loss2d_forward": 2,
    "nll_loss2d_backward": 2,
    "_scaled_dot_product_flash_attention_backward": 3,
    "_scaled_dot_product_efficient_attention_backward": 2,
}
# Which read as much as they write, whatever they are given.
_GATHERS = ("index_select", "index", "embedding")
# What the host has to wait for.
_WAITS = ["nonzero", "_local_scalar_dense", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2"]


class GpuCounts(TorchDispatchMode):
    """Counts into `counts`, by the names of `COLUMNS`, what runs inside a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter(dict.fromkeys(COLUMNS, 0))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if name.startswith("convolution"):
            out = self._convolve(name, args, out)
        inputs, outputs = (_tensors(tree) for tree in ((args, kwargs), out))
        crosses = len({t.device.type for t in (*inputs, *outputs) if t.ndim}) > 1
        self.counts["waits"] += name in _WAITS or crosses
        if name in _FREE or func.is_view or all(t.device.type == "cpu" for t in outputs):
            return out
        self.counts["kernels"] += _KERNELS.get(name, 1)
        reads = outputs if name in _GATHERS else inputs
        self.counts["bytes"] += sum(_bytes(t) for t in (*reads, *outputs))
        if name in ("clone", "copy_", "_to_copy") and inputs[-1].dtype == outputs[0].dtype:
            self.counts["layout_copies"] += 1
        if name == "native_layer_norm" and not args[0].is_contiguous():
            self._copy(args[0])
        return out

    def _copy(self, x: Tensor) -> None:
        """Count a copy that an operation makes inside."""
        self.counts.update(kernels=1, layout_copies=1, bytes=2 * _bytes(x))

    def _convolve(self, name: str, args: tuple, out: Any) -> Any:
        """Count what cuDNN does beside a convolution, and give its output the strides that cuDNN's has.

        It takes channels-last if the map or the weight is, copies what is in another format, and adds the
        bias by itself.
        """
        backward = name == "convolution_backward"
        maps = args[:3] if backward else args[:2]
        nhwc = any(_is_nhwc(t) for t in maps[-2:])
        memory_format = torch.channels_last if nhwc else torch.contiguous_format
        for t in maps:
            if not t.is_contiguous(memory_format=memory_format):
                self._copy(t)
        if backward:
            self.counts["kernels"] += sum(args[10]) - 1  # one for each gradient
        elif args[2] is not None:
            self.counts.update(kernels=1, bytes=2 * _bytes(out))
        outputs = [
            t if t is None or t.ndim != 4 else torch.empty_like(t, memory_format=memory_format)
            for t in (out if backward else (out,))
        ]
        return tuple(outputs) if backward else outputs[0]


class PeakMemory(TorchDispatchMode):
    """Adds up in `peak` the most bytes that tensors made inside a `with` block have at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in _tensors(out) if t.device.type == "cuda"):
            if storage._cdata not in self._held:
                self._held.add(storage._cdata)
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return out

    def _free(self, key: int, size: int) -> None:
        self._held.remove(key)
        self._now -= size


class _FusedAttention(TorchFunctionMode):
    """Gives attention the kernel that a GPU takes, which without one is PyTorch's choice of last resort."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v = args[:3]
        if torch.is_autocast_enabled(q.device.type):
            q, k, v = (t.to(torch.get_autocast_dtype(q.device.type)) for t in (q, k, v))
        dropout, mask = kwargs.get("dropout_p", 0.0), kwargs.get("attn_mask")
        if mask is None:
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout)[0]
        if mask.dtype is torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        mask = mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        grad = torch.is_grad_enabled()
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, grad, dropout)[0]


@contextmanager
def fake_gpu(*modules: nn.Module) -> Iterator[None]:
    """Move modules to a fake GPU, where operations have shapes and no values, for a `with` block."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in (part for root in modules for part in root.modules()):
            for name, value in module._parameters.items():
                if value is not None:
                    fake = torch.empty_like(value.detach(), device="cuda")
                    module._parameters[name] = nn.Parameter(fake, value.requires_grad)
            for name, value in module._buffers.items():
                if value is not None:
                    module._buffers[name] = torch.empty_like(value, device="cuda")
        with (
            patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False),
            patch.object(torch.cuda, "is_bf16_supported", return_value=True),
            _FusedAttention(),
        ):
            yield


def count(run: Callable[[Tensor], Any], image: Tensor, dtype: torch.dtype = torch.bfloat16) -> Counter[str]:
    """Count a call without gradients under autocast, as in prediction."""
    with torch.no_grad(), GpuCounts() as counter, torch.autocast("cuda", dtype):
        run(image)
    return counter.counts


def count_step(model: nn.Module, image: Tensor, dtype: torch.dtype = torch.bfloat16) -> Counter[str]:
    """Count forward pass, cross-entropy and backward pass under autocast, as in training."""
    target = torch.empty(len(image), *image.shape[2:], dtype=torch.int64, device="cuda")
    with GpuCounts() as counter:
        with torch.autocast("cuda", dtype):
            output = model(image)
        _backward(F.cross_entropy(output.float(), target))
    return counter.counts


def _backward(loss: Tensor) -> None:
    """Run the nodes of a graph backwards, which PyTorch's engine does for the device of a real GPU alone."""
    edges: Counter[Any] = Counter()
    seen, stack = {loss.grad_fn}, [loss.grad_fn]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                edges[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    grads: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        got = grads.pop(node, {})
        if not node.next_functions:  # a parameter's gradient is its own first time
            continue
        outputs = node(*(got.get(i) for i in range(len(node._input_metadata)))) if got else None
        outputs = outputs if isinstance(outputs, tuple) else (outputs,) * len(node.next_functions)
        for (following, index), grad in zip(node.next_functions, outputs, strict=True):
            if following is None:
                continue
            if grad is not None:
                expected = following._input_metadata[index]
                grad = grad.sum_to_size(expected.shape).to(expected.dtype)
                slot = grads.setdefault(following, {})
                slot[index] = slot[index] + grad if index in slot else grad
            edges[following] -= 1
            if not edges[following]:
                ready.append(following)


def _tensors(tree: Any) -> list[Tensor]:
    return list({id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}.values())


def _bytes(t: Tensor) -> int:
    """Bytes that a kernel touches: of a dimension that is only expanded, one."""
    sizes = [size for size, stride in zip(t.shape, t.stride(), strict=True) if stride]
    return torch.Size(sizes).numel() * t.element_size()


def _is_nhwc(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


# Networks of this depth are counted; more blocks and levels repeat the same kernels.
MODELS = [
    *(("unet", f"vz-{way}tiny_vit") for way in ("", "shuffle-", "detail-")),
    *((arch, "vz-tiny_vit") for arch in ("fpn", "pan", "upernet", "deeplabv3plus")),
    *((arch, "vz-tiny_vit") for arch in ("vitseg", "segmenter", "eomt", "fusedsegformer")),
    ("vitseg", "vz-vitseg_tiny_patch16_128"),
    ("unet", "vz-mit_b0"),
    ("fusedsegformer", "vz-mit_b0"),
    ("segnet", "segnet"),
    ("segnetdsc", "segnetdsc"),
]


def rows() -> Iterator[dict[str, Any]]:
    """Yield the table's rows: of each model a prediction and a step of training, channels-last, bf16."""
    for arch, encoder in MODELS:
        for mode in ("predict", "train"):
            model = smp.create_model(arch, encoder, encoder_weights=None, classes=16).train(mode == "train")
            with fake_gpu(model.to(memory_format=torch.channels_last)):
                image = torch.empty(2, 3, 128, 128, device="cuda").to(memory_format=torch.channels_last)
                counts = (count_step if mode == "train" else count)(model, image)
            yield {"model": arch, "encoder": encoder, "mode": mode, **counts}


def batches_that_fit() -> Iterator[str]:
    """Yield rows in Markdown: memory of an image in a step of training, and how many a card holds."""
    for arch, encoder, options in (
        ("fusedsegformer", "vz-mit_b0", {}),
        ("fusedsegformer", "vz-mit_b2", {"decoder_segmentation_channels": 768}),
        ("vitseg", "vz-vit_base_patch16_224", {}),
        ("unet", "vz-vit_base_patch16_224", {}),
        ("unet", "resnet50", {}),
    ):
        model = smp.create_model(arch, encoder, encoder_weights=None, classes=21, **options).train()
        peaks = []
        with fake_gpu(model.to(memory_format=torch.channels_last)):
            for batch in (1, 2):
                image = torch.empty(batch, 3, 512, 512, device="cuda").to(memory_format=torch.channels_last)
                target = torch.empty(batch, 512, 512, dtype=torch.int64, device="cuda")
                with PeakMemory() as memory:
                    with torch.autocast("cuda", torch.bfloat16):
                        output = model(image)
                    loss = F.cross_entropy(output.float(), target)
                peaks.append(memory.peak)
                del output, loss
        an_image = peaks[1] - peaks[0]
        # Weights, gradients and Adam's two averages, in fp32; and the copies in bf16.
        rest = 16 * sum(p.numel() for p in model.parameters()) + peaks[0] - an_image
        fit = [int((0.9 * card * 1e9 - rest) // an_image) for card in (8, 16, 24, 80)]
        name = ", ".join(f"`{word}`" for word in (arch, encoder, *(f"{k}={v}" for k, v in options.items())))
        yield f"| {name} | {an_image / 1e6:.0f} MB | {' | '.join(map(str, fit))} |"


def read_table() -> tuple[str, list[dict[str, str]]]:
    """Return the versions of which the stored table is, and its rows."""
    versions, *lines = TABLE.read_text(encoding="utf-8").splitlines()
    return versions.removeprefix("# "), list(csv.DictReader(lines))


def main() -> None:
    """Write the table."""
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# {VERSIONS}\n")
        writer = csv.DictWriter(file, ("model", "encoder", "mode", *COLUMNS), lineterminator="\n")
        writer.writeheader()
        for row in rows():
            writer.writerow(row)
            print(*row.values(), file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:] == ["memory"]:
        print(*batches_that_fit(), sep="\n")
    else:
        main()
