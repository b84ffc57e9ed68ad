"""When a fast form may run: the switch, PyTorch's private operations, and parts that are what they were."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from vitseg_zoo.ops.dispatch import (
    has_operations,
    may_bypass,
    plain_forms,
    reason_to_call,
    runs_eagerly_on_cpu,
)


class OwnLinear(nn.Linear):
    pass


class OwnTensor(torch.Tensor):
    pass


def with_own_weight(layer: nn.Linear) -> nn.Linear:
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(OwnTensor))
    return layer


def with_own_forward(layer: nn.Linear) -> nn.Linear:
    layer.forward = lambda x: x
    return layer


def hooked(register: str) -> Callable[[nn.Linear], nn.Linear]:
    def change(layer: nn.Linear) -> nn.Linear:
        getattr(layer, register)(lambda *args: None)
        return layer

    return change


CHANGES: dict[str, tuple[Callable[[nn.Linear], nn.Module], str]] = {
    "another layer": (lambda layer: nn.Identity(), "Identity in place of Linear"),
    "subclass": (lambda layer: OwnLinear(2, 2), "OwnLinear in place of Linear"),
    "weight norm": (parametrizations.weight_norm, "ParametrizedLinear in place of Linear"),
    "old weight norm": (weight_norm, "a hook on Linear"),
    "old spectral norm": (spectral_norm, "a hook on Linear"),
    "pruning": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "a hook on Linear"),
    "class of the weight": (with_own_weight, "OwnTensor in Linear"),
    "forward": (with_own_forward, "Linear with a forward method of its own"),
    "forward hook": (hooked("register_forward_hook"), "a hook on Linear"),
    "forward pre-hook": (hooked("register_forward_pre_hook"), "a hook on Linear"),
    "backward hook": (hooked("register_full_backward_hook"), "a hook on Linear"),
    "backward pre-hook": (hooked("register_full_backward_pre_hook"), "a hook on Linear"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_parts_are_called(change: str) -> None:
    make, reason = CHANGES[change]
    assert may_bypass((nn.Linear(2, 2), nn.Linear), (nn.Linear(2, 2), (nn.Conv2d, nn.Linear)))
    assert reason_to_call((nn.Linear(2, 2), nn.Linear), (make(nn.Linear(2, 2)), nn.Linear)) == reason


def test_hooks_on_all_modules_count() -> None:
    hook = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        assert not may_bypass((nn.Linear(2, 2), nn.Linear))
    finally:
        hook.remove()
    assert may_bypass((nn.Linear(2, 2), nn.Linear))


def test_hooks_that_only_collect_outputs_do_not_count() -> None:
    def output_capturing_hook(*args: object) -> None: ...

    output_capturing_hook.__module__ = "transformers.utils.output_capturing"
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(output_capturing_hook)
    assert may_bypass((layer, nn.Linear))


@pytest.mark.skipif(torch.__version__.startswith("2.5."), reason="its graphs know of no later hooks")
def test_predicate_is_compiled_without_a_break() -> None:
    layer = nn.Linear(2, 2)

    @torch.compile(backend="eager", fullgraph=True)
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x if may_bypass((layer, nn.Linear)) else layer(x)

    x = torch.ones(2)
    assert torch.equal(doubled(x), 2 * x)
    handle = layer.register_forward_hook(lambda *args: None)
    assert torch.equal(doubled(x), layer(x))
    handle.remove()


def test_switch_is_for_the_block_and_may_be_nested() -> None:
    layer, x = (nn.Linear(2, 2), nn.Linear), torch.ones(2)
    with plain_forms():
        with plain_forms():
            pass
        assert not runs_eagerly_on_cpu(x) and reason_to_call(layer) == "VITSEG_ZOO_PLAIN"
    assert runs_eagerly_on_cpu(x) and may_bypass(layer)


@pytest.mark.parametrize(("value", "plain"), [("1", True), ("", False), ("0", False)])
def test_switch_in_the_environment(value: str, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSEG_ZOO_PLAIN", value)
    assert imported_anew()["_plain_only"] is plain


@pytest.mark.parametrize("name", ["_are_functorch_transforms_active", "_len_torch_dispatch_stack"])
def test_internals_that_are_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert imported_anew()["runs_eagerly_on_cpu"](torch.ones(2))
    monkeypatch.delattr(torch._C, name)
    assert not imported_anew()["runs_eagerly_on_cpu"](torch.ones(2))


def imported_anew() -> dict[str, Any]:
    """The names of `dispatch` as another process would have them."""
    name = "vitseg_zoo.ops.dispatch"
    fresh: dict[str, Any] = {"__name__": "fresh"}
    exec(importlib.util.find_spec(name).loader.get_code(name), fresh)
    return fresh


def test_operations_that_are_missing_or_others() -> None:
    assert has_operations({"aten.mm.default": "self mat2", "aten.mm.out": "self mat2 out"})
    for other in ({"aten.mm.default": "self"}, {"aten.nothing.default": ""}, {"aten.mm.nothing": ""}):
        assert not has_operations({"aten.mm.default": "self mat2"} | other)


_WITHOUT = """
import os
os.environ["VITSEG_ZOO_AUTOLOAD"] = "0"
import torch, torch.distributed.tensor, segmentation_models_pytorch as smp
class Other:  # an operation of another PyTorch, which would fail if it were called
    class default:
        class _schema: arguments = ()
    out = grad_input = default
for name in ("_linear_pointwise", "_convolution_pointwise", "_is_mkldnn_bf16_supported"):
    setattr(torch.ops.mkldnn, name, Other)
for name in ("upsample_bilinear2d", "gelu_backward", "native_layer_norm_backward", "convolution_backward",
             "threshold_backward", "batch_norm_update_stats"):
    setattr(torch.ops.aten, name, Other)

import vitseg_zoo
from vitseg_zoo.ops.dispatch import plain_forms
model = smp.create_model("fusedsegformer", "vz-mit_b0", encoder_weights=None, classes=3).double()
x = torch.rand(2, 3, 64, 64).double()
def run():
    model.zero_grad()
    outputs = model(x), model.eval()(x)
    outputs[0].square().sum().backward()
    with torch.no_grad(): outputs += model(x),
    model.train()
    return [*outputs, *(p.grad for p in model.parameters() if p.grad is not None)]
torch.manual_seed(0); state = {k: v.clone() for k, v in model.state_dict().items()}
actual = run()
model.load_state_dict(state); torch.manual_seed(0)
with plain_forms(): expected = run()
torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
"""


@pytest.mark.slow
def test_plain_form_where_pytorch_has_other_private_operations() -> None:
    result = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
