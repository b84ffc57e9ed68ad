"""Mix-FFN in strips against the plain layers: outputs and all gradients."""

import copy

import pytest
import torch
from torch import nn

from vitseg_zoo.encoders import mix_ffn
from vitseg_zoo.encoders.mix_block import MixFFN


def plain(module: MixFFN, x: torch.Tensor) -> torch.Tensor:
    hidden = module.dwconv(module.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return module.fc2(module.act(hidden))


@pytest.mark.parametrize("elements", [1, 16 * 7 * 9, 40 * 7 * 9 * 16, 2**22])
@pytest.mark.parametrize("dilation", [1, 2])
def test_equals_plain_layers(elements: int, dilation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix_ffn, "_STRIP_ELEMENTS", elements)  # one row and more, one image and more
    module = MixFFN(8, 16).double()
    module.set_dilation(dilation)
    expected = copy.deepcopy(module)
    x = torch.randn(3, 40, 7, 8, dtype=torch.float64, requires_grad=True)
    x_expected = x.detach().clone().requires_grad_()
    weight = torch.randn_like(x)
    output, output_expected = module(x), plain(expected, x_expected)
    torch.testing.assert_close(output, output_expected, rtol=0, atol=1e-12)
    (output * weight).sum().backward()
    (output_expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, x_expected.grad, rtol=0, atol=1e-10)
    for (name, p), q in zip(module.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-10, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(module(x), output_expected, rtol=0, atol=1e-12)


def test_keeps_nothing_of_the_hidden_map() -> None:
    module, x = MixFFN(8, 64), torch.randn(1, 16, 16, 8, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    assert max(kept) == x.numel()


@pytest.mark.parametrize("change", ["dropout", "hook", "no bias", "frozen"])
def test_other_layers_train_as_they_would(change: str) -> None:
    module = MixFFN(8, 16, proj_drop=0.5 if change == "dropout" else 0.0).double()
    calls = []
    if change == "hook":
        module.fc1.register_forward_hook(lambda *args: calls.append(1))
    if change == "no bias":
        module.fc1.bias = module.dwconv.bias = module.fc2.bias = None
    if change == "frozen":
        module.fc1.requires_grad_(False)
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    output = module(x)
    torch.manual_seed(1)
    expected = module.drop(module.fc2(module.drop(module.act(
        module.dwconv(module.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    ))))  # fmt: skip
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    parameters = [p for p in module.parameters() if p.requires_grad]
    weight = torch.randn_like(output)
    actual = torch.autograd.grad((output * weight).sum(), [x, *parameters])
    torch.testing.assert_close(actual, torch.autograd.grad((expected * weight).sum(), [x, *parameters]))
    assert bool(calls) == (change == "hook")


def test_linear_layer_on_maps_has_a_second_derivative() -> None:
    from vitseg_zoo.encoders.mix_ops import PointwiseLinear

    layer, reference = PointwiseLinear(4, 6), nn.Linear(4, 6)
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    penalties = []
    for module in (layer, reference):
        (gradient,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(gradient.square().sum(), module.weight)[0])
    torch.testing.assert_close(penalties[0], penalties[1], atol=1e-4, rtol=1e-4)


def test_input_with_channels_first_in_memory() -> None:
    module = MixFFN(8, 16).double()
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64).permute(0, 2, 3, 1).requires_grad_()
    weight = torch.randn_like(x)
    (expected,) = torch.autograd.grad((plain(module, x) * weight).sum(), x)
    torch.testing.assert_close(torch.autograd.grad((module(x) * weight).sum(), x)[0], expected)
