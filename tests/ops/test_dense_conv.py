"""Dense convolutions of MiT against PyTorch's, all gradients."""

import pytest
import torch
from torch import nn

from vitseg_zoo.encoders.mix_block import OverlapPatchEmbed
from vitseg_zoo.ops.dense_conv import dense_conv


def assert_equal(conv: nn.Conv2d, size: tuple[int, int], expected_form: str) -> None:
    """Output and gradients are those of `conv`, and the form is the products or PyTorch's own."""
    x = torch.randn(2, *size, conv.in_channels, dtype=torch.float64, requires_grad=True)
    fast = dense_conv(conv, x)
    assert ("DenseConv" in type(fast.grad_fn).__name__) == (expected_form == "products")
    results = []
    for output in (fast, conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)):
        weight = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view(output.shape)
        results.append([output, *torch.autograd.grad((output * weight).sum(), [x, *conv.parameters()])])
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(12, 8), (11, 9), (3, 2)])  # windows that fill the map, and that do not
@pytest.mark.parametrize(
    "options",
    [{"stride": (3, 2)}, {"stride": 5}, {"stride": (1, 2), "padding": 1}, {"stride": 2, "padding": (2, 1)}],
)
def test_products(bias: bool, size: tuple[int, int], options: dict) -> None:
    assert_equal(nn.Conv2d(64, 6, (3, 2), **options, bias=bias).double(), size, "products")


@pytest.mark.parametrize("kernel, stride, padding", [(3, 2, 1), (8, 8, 0), (4, 4, 0), (2, 2, 0)])
def test_windows_of_mit(kernel: int, stride: int, padding: int) -> None:
    assert_equal(nn.Conv2d(64, 64, kernel, stride, padding).double(), (16, 24), "products")


def test_weight_that_is_copied_by_position() -> None:
    assert_equal(nn.Conv2d(192, 256, 3, 2, 1).double(), (5, 6), "products")


@pytest.mark.parametrize(
    "options",
    [{"dilation": 2}, {"groups": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}],
)
def test_other_convolutions_take_the_plain_form(options: dict) -> None:
    assert_equal(nn.Conv2d(64, 6, 3, **options).double(), (9, 9), "plain")


def test_few_channels_and_frozen_weights_take_the_plain_form() -> None:
    assert_equal(nn.Conv2d(3, 32, 7, 4, 3).double(), (16, 16), "plain")
    frozen = nn.Conv2d(64, 8, 2, 2).requires_grad_(False)
    output = dense_conv(frozen, torch.randn(1, 4, 4, 64, requires_grad=True))
    assert "DenseConv" not in type(output.grad_fn).__name__


def test_output_of_an_image_with_channels_first_in_memory() -> None:
    conv, image = nn.Conv2d(3, 8, 7, 4, 3).double(), torch.randn(2, 3, 16, 20, dtype=torch.float64)
    output = dense_conv(conv, image.permute(0, 2, 3, 1))
    assert output.is_contiguous()  # channels last, as all maps behind it
    torch.testing.assert_close(output.permute(0, 3, 1, 2), conv(image), rtol=0, atol=1e-10)


def test_first_layer_needs_no_gradient_of_the_input() -> None:
    conv, x = nn.Conv2d(64, 8, 3, 2, 1).double(), torch.randn(1, 8, 8, 64, dtype=torch.float64)
    dense_conv(conv, x).square().sum().backward()
    gradient, conv.weight.grad = conv.weight.grad, None
    conv(x.permute(0, 3, 1, 2)).square().sum().backward()
    torch.testing.assert_close(gradient, conv.weight.grad, rtol=0, atol=1e-10)


def test_hooks_are_called() -> None:
    embed, calls = OverlapPatchEmbed(64, 8, 3, 2), []
    embed.proj.register_forward_hook(lambda *_: calls.append(1))
    embed(torch.randn(1, 64, 8, 8))
    assert calls == [1]
