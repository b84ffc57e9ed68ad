import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitseg_zoo.ops.bilinear import add_doubled, gradient_of_doubled, resample, upsample


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("input_size", [(4, 7), (40, 35)])  # one band of the matrix, and more
@pytest.mark.parametrize("size", [(12, 21), (11, 30), (3, 5), (1, 1), (160, 140)])
def test_gradient_is_that_of_interpolate(
    input_size: tuple[int, int],
    size: tuple[int, int],
    align_corners: bool,
    memory_format: torch.memory_format,
) -> None:
    x = torch.randn(2, 3, *input_size, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weights = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=memory_format)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    output = resample(x, size, align_corners)
    assert "Resample" in type(output.grad_fn).__name__
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    (actual,) = torch.autograd.grad((output * weights).sum(), x)
    torch.testing.assert_close(actual, gradient, rtol=0, atol=1e-12)


def test_gradient_under_autocast_keeps_its_precision() -> None:
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):  # some call backward() inside
        gradient = torch.autograd.grad(resample(x, (20, 20)).sum(), x)[0]
    expected = torch.autograd.grad(F.interpolate(x, scale_factor=4.0, mode="bilinear").sum(), x)[0]
    torch.testing.assert_close(gradient, expected)


def test_upsampling_has_a_second_derivative() -> None:
    x = torch.randn(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    layer = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    assert torch.autograd.gradgradcheck(lambda x: upsample(layer, x), x)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True),
        nn.UpsamplingBilinear2d(scale_factor=2),
        nn.Upsample(scale_factor=1.5, mode="bilinear"),
        nn.Upsample(scale_factor=(2, 3), mode="bilinear"),
        nn.Upsample(scale_factor=2),
        nn.Upsample(size=(9, 8), mode="bilinear"),
        nn.Identity(),
    ],
    ids=str,
)
def test_layers_are_applied_as_they_are(layer: nn.Module) -> None:
    x = torch.randn(1, 2, 4, 5)
    torch.testing.assert_close(upsample(layer, x), layer(x))


@pytest.mark.parametrize("columns", [1, 2, 9])
def test_doubled_columns_and_their_gradient_are_those_of_interpolate(columns: int) -> None:
    x = torch.randn(3, columns, 5, dtype=torch.float64, requires_grad=True)
    # (3, columns, 5) to (3, 5, 1, columns) and back
    resampled = F.interpolate(x.mT[:, :, None], size=(1, 2 * columns), mode="bilinear")[:, :, 0].mT
    output = torch.ones_like(resampled)
    add_doubled(output, x.detach())
    torch.testing.assert_close(output, 1 + resampled.detach(), rtol=0, atol=1e-12)
    gradient = torch.randn_like(resampled)
    (expected,) = torch.autograd.grad(resampled, x, gradient)
    torch.testing.assert_close(gradient_of_doubled(gradient), expected, rtol=0, atol=1e-12)
