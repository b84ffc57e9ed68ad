"""Linear layers on maps against `nn.Linear`, in the types, modes and with the weights that users have."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitseg_zoo.encoders.mix_block import MixFFN
from vitseg_zoo.ops import linear as linear_module
from vitseg_zoo.ops.dispatch import HAS_BF16, HAS_ONEDNN
from vitseg_zoo.ops.drop_path import with_drop_path
from vitseg_zoo.ops.linear import linear


class OnMaps(nn.Sequential):
    """A linear layer as MiT's parts apply it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(self[0], x)


def pair(channels: int = 24, bias: bool = True) -> tuple[OnMaps, nn.Linear]:
    reference = nn.Linear(channels, 40, bias=bias)
    return OnMaps(copy.deepcopy(reference)), reference


@pytest.fixture
def onednn_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    onednn = linear_module._onednn_linear
    monkeypatch.setattr(linear_module, "_onednn_linear", lambda *args: calls.append(1) or onednn(*args))
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equals_linear(dtype: torch.dtype, bias: bool, onednn_calls: list[int]) -> None:
    layer, reference = (module.to(dtype) for module in pair(bias=bias))
    x = torch.randn(2, 5, 6, 24, dtype=dtype)
    x = torch.cat([x, x], dim=1)[:, ::2]  # not contiguous
    with torch.no_grad():
        output = layer(x)
        assert output.dtype is dtype
        is_fast = HAS_ONEDNN if dtype is torch.float32 else HAS_BF16 and dtype is torch.bfloat16
        assert len(onednn_calls) == is_fast
        tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype is torch.bfloat16 else {}
        torch.testing.assert_close(output, reference(x), **tolerance)
        assert layer(x[:0]).shape == (0, 5, 6, 40)
        torch.testing.assert_close(layer(x[0, 0]), reference(x[0, 0]))  # other shapes are nn.Linear's
    torch.testing.assert_close(layer(x), reference(x))


@pytest.mark.parametrize("channels", [24, 1024])  # gradients of the input by oneDNN, by MKL
@pytest.mark.parametrize("images", [2, 0])
def test_gradients_equal_those_of_linear(channels: int, images: int, onednn_calls: list[int]) -> None:
    layers, x = pair(channels), torch.randn(images, 5, 6, channels, requires_grad=True)
    weight = torch.randn(images, 6, 5, 40).transpose(1, 2)  # not contiguous
    results = [torch.autograd.grad(layer(x), [x, *layer.parameters()], weight) for layer in layers]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert len(onednn_calls) == (1 + (channels == 24) if HAS_ONEDNN else 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_input", [torch.float32, torch.bfloat16])
def test_autocast_has_the_types_of_linear(dtype: torch.dtype, of_input: torch.dtype) -> None:
    layer, reference = pair()
    x = torch.randn(1, 3, 4, 24, dtype=of_input)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        output, expected = layer(x), reference(x)
    assert output.dtype is expected.dtype is dtype
    torch.testing.assert_close(output, expected, rtol=1e-2, atol=1e-2)


def test_wrong_channels_and_types_are_reported_as_by_linear() -> None:
    layer, reference = pair()
    for x in (torch.randn(1, 3, 4, 23), torch.randn(1, 3, 4, 24, dtype=torch.bfloat16)):
        messages = []
        for module in (layer, reference):
            with torch.no_grad(), pytest.raises(RuntimeError) as error:
                module(x)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


def test_operations_are_counted() -> None:
    x = torch.randn(1, 8, 8, 16)
    module = MixFFN(16, 64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    assert counter.get_total_flops() == 2 * 64 * (16 * 64 + 9 * 64 + 64 * 16)


def test_weights_of_another_class_are_left_to_it() -> None:
    """As torchao's quantized weights are: subclasses of Tensor that answer to F.linear."""

    class Doubled(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is nn.functional.linear:
                return 2 * nn.functional.linear(args[0], args[1].as_subclass(torch.Tensor))
            return super().__torch_function__(function, types, args, kwargs or {})

    layer, reference = pair(bias=False)
    layer[0].weight = nn.Parameter(layer[0].weight.detach().as_subclass(Doubled))
    assert isinstance(layer[0].weight, Doubled)
    x = torch.randn(1, 2, 2, 24)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), 2 * reference(x))


@pytest.mark.parametrize("channels_last", [False, True])
def test_gelu_within_the_convolution(channels_last: bool) -> None:
    module, x = MixFFN(8, 32), torch.randn(1, 20, 9, 8)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    expected = module.double()(x.double()).float()
    module = module.float()
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            output = module(x)
    assert output.dtype is torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=2e-2)


def test_hooks_on_the_activation_are_called() -> None:
    module, calls = MixFFN(8, 32), []
    module.act.register_forward_hook(lambda *args: calls.append(1))
    with torch.no_grad():
        module(torch.randn(1, 4, 4, 8))
    assert calls


@pytest.mark.parametrize(("kept", "computed"), [([1, 0, 1, 0], 2), ([1, 1, 1, 1], 4), ([0, 0, 0, 0], 4)])
def test_stochastic_depth_leaves_out_the_images_that_it_drops(kept: list[int], computed: int) -> None:
    scale = 2.0 * torch.tensor(kept, dtype=torch.float64).view(4, 1, 1, 1)
    x = torch.randn(4, 3, 5, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, dtype=torch.float64, requires_grad=True)
    sizes = []

    def half(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x + scale * (x * weight).exp()

    def whole_images_dropped(x: torch.Tensor) -> torch.Tensor:
        return x * scale

    actual = with_drop_path(x, whole_images_dropped, half)
    assert sizes == [computed]
    expected = half(x, scale)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    gradients = [torch.autograd.grad(output.square().sum(), [x, weight]) for output in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
