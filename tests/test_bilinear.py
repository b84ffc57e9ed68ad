import pytest
import torch
import torch.nn.functional as F

from vitseg_zoo.decoders.bilinear import BilinearUpsample, resample


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(12, 21), (11, 30), (3, 5), (1, 1)])
def test_gradient_is_that_of_interpolate(
    size: tuple[int, int], align_corners: bool, memory_format: torch.memory_format
) -> None:
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weights = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=memory_format)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    output = resample(x, size, align_corners)
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
    assert torch.autograd.gradgradcheck(BilinearUpsample(2, align_corners=True), x)
