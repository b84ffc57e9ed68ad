"""Which form of an operation runs: the plain one, or a fast one that gives the same.

The plain form calls a model's layers one after the other, as the papers have them. Fast forms compute the
same from the layers' weights without calling them: in another order, in strips that stay in a CPU's cache, or
by operations that PyTorch's own layers have no way to. One runs only where all of this holds:

* it is not switched off, by the environment's `VITSEG_ZOO_PLAIN=1` or by `plain_forms`;
* PyTorch has the private operations that it is made of, with the arguments that it knows (`has_operations`);
* the parts that it bypasses are what they were when it was written (`may_bypass`);
* where it only pays on a CPU, the tensors are on one, and nobody records or transforms what is computed
  (`runs_eagerly_on_cpu`).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

Layer = Callable[[torch.Tensor], torch.Tensor]
# A part of a model, and the class or classes that a fast form knows it by.
Part = tuple[object, type | tuple[type, ...]]

_plain_only = os.environ.get("VITSEG_ZOO_PLAIN", "").lower() not in ("", "0", "false", "off", "no")


@contextmanager
def plain_forms() -> Iterator[None]:
    """Switch off every fast form inside a `with` block, in all threads.

    Example:
        >>> import timm
        >>> model, image = timm.create_model("mit_b0").eval(), torch.rand(1, 3, 64, 64)
        >>> with torch.no_grad(), plain_forms():
        ...     expected = model(image)
        >>> with torch.no_grad():
        ...     torch.testing.assert_close(model(image), expected, atol=1e-4, rtol=1e-4)
    """
    global _plain_only
    before, _plain_only = _plain_only, True
    try:
        yield
    finally:
        _plain_only = before


def has_operations(arguments: dict[str, str]) -> bool:
    """Tell whether PyTorch has operations with the arguments that a fast form passes.

    Asked once, when the module of the fast form is imported; it computes nothing.

    Args:
        arguments: The names of an operation's arguments, in order, by the operation's own name and overload.

    Example:
        >>> has_operations({"aten.mm.out": "self mat2 out"}), has_operations({"aten.mm.out": "left right"})
        (True, False)
    """
    try:
        for operation, names in arguments.items():
            namespace, name, overload = operation.split(".")
            schema = getattr(getattr(getattr(torch.ops, namespace), name), overload)._schema
            if [argument.name for argument in schema.arguments] != names.split():
                return False
    except (AttributeError, RuntimeError):
        return False
    return True


# Operations that PyTorch's compiler also calls; F.linear and F.conv2d have no way to them.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and has_operations(
    {
        "mkldnn._linear_pointwise.default": "X W B attr scalars algorithm",
        "mkldnn._convolution_pointwise.default": (
            "X W B padding stride dilation groups attr scalars algorithm"
        ),
        "mkldnn._is_mkldnn_bf16_supported.default": "",
    }
)
# Whether the CPU multiplies bf16 itself; emulated, a step of a training can take minutes.
HAS_BF16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()

# What says whether somebody records or transforms what is computed.
_SEES_TRANSFORMS = (
    hasattr(torch._C, "_are_functorch_transforms_active")
    and hasattr(torch._C, "_len_torch_dispatch_stack")
    and hasattr(forward_ad, "_current_level")
)


def runs_eagerly_on_cpu(x: torch.Tensor) -> bool:
    """Tell whether the forms of an operation on `x` that only pay on a CPU may be used.

    Not while a graph is recorded, under the transforms of `torch.func`, in forward-mode differentiation,
    where dispatch modes such as `FlopCounterMode` look on, nor for subclasses of tensors: those see the plain
    forms.
    """
    return (
        not torch.compiler.is_compiling()
        and not _plain_only
        and _SEES_TRANSFORMS
        and type(x) in (torch.Tensor, nn.Parameter)
        and x.is_cpu
        and not (
            torch.jit.is_tracing()
            or torch._C._are_functorch_transforms_active()
            or forward_ad._current_level >= 0
            or torch._C._len_torch_dispatch_stack()
        )
    )


def runs_eagerly_on_gpu(x: torch.Tensor) -> bool:
    """Tell whether the forms of an operation on `x` that only pay on a GPU may be used.

    Not while a graph is recorded: what compilers fuse is the plain forms.
    """
    return x.is_cuda and not (_plain_only or torch.compiler.is_compiling() or torch.jit.is_tracing())


def may_bypass(*parts: Part) -> bool:
    """Tell whether parts of a model may be computed from their weights instead of being called.

    Args:
        parts: Every part that would not be called, with its class or classes: a subclass, as a
            parametrization, quantization, an adapter or FSDP2 makes one, is something else.

    Returns:
        Whether all of them are what they were made as; see `reason_to_call`.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> may_bypass((layer, nn.Linear))
        True
        >>> handle = layer.register_forward_hook(print)
        >>> may_bypass((layer, nn.Linear))
        False
    """
    return reason_to_call(*parts) is None


def reason_to_call(*parts: Part) -> str | None:
    """Say why parts have to be called: the first reason there is, or None if `may_bypass`.

    Reasons are another class than the one given, hooks of anybody but the framework's own, a forward method
    of the object's own (as Hugging Face's accelerate sets it), and parameters or buffers of a class of their
    own (DTensor, torchao's quantized ones). Old-style weight norm, spectral norm and pruning have hooks.
    """
    if _plain_only:
        return "VITSEG_ZOO_PLAIN"
    if (
        torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
        or (torch_module._global_forward_hooks and _is_foreign(torch_module._global_forward_hooks))
        or (torch_module._global_forward_pre_hooks and _is_foreign(torch_module._global_forward_pre_hooks))
    ):
        return "a hook on all modules"
    for part, classes in parts:
        if not (type(part) is classes or (isinstance(classes, tuple) and type(part) in classes)):
            return f"{type(part).__name__} in place of {_name_of(classes)}"
        if not isinstance(part, nn.Module):
            continue  # None, where a part may be left out
        if (
            part._backward_hooks
            or part._backward_pre_hooks
            or (part._forward_hooks and _is_foreign(part._forward_hooks))
            or (part._forward_pre_hooks and _is_foreign(part._forward_pre_hooks))
        ):
            return f"a hook on {type(part).__name__}"
        if "forward" in part.__dict__:
            return f"{type(part).__name__} with a forward method of its own"
        for tensors in (part._parameters, part._buffers):
            for tensor in tensors.values():
                if tensor is not None and type(tensor) not in _TENSORS:
                    return f"{type(tensor).__name__} in {type(part).__name__}"
    return None


# The last two are what exporting makes of all tensors.
_TENSORS = (torch.Tensor, nn.Parameter, FakeTensor, FunctionalTensor)
# Modules whose hooks change no output and need no call: of transformers to collect what it is asked for, of
# PyTorch to know which module is running.
_FRAMEWORKS_HOOKS = ("transformers.utils.output_capturing", "torch.utils.module_tracker")


def _is_foreign(hooks: dict[int, Callable]) -> bool:
    """Tell whether there is a hook that is not one of the framework's own."""
    return any(getattr(hook, "__module__", None) not in _FRAMEWORKS_HOOKS for hook in hooks.values())


def _name_of(classes: type | tuple[type, ...]) -> str:
    return (classes[0] if isinstance(classes, tuple) else classes).__name__
