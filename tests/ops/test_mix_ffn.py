"""Mix-FFN in strips, with the norm before it and the shortcut, against the plain form: all gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from vitseg_zoo.encoders import mix_block
from vitseg_zoo.encoders.mix_block import Block
from vitseg_zoo.ops import mix_ffn
from vitseg_zoo.ops.dispatch import plain_forms
from vitseg_zoo.ops.linear import linear


class Nothing(nn.Module):
    """A first half of a block that adds nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


class Half(Block):
    """The second half of a block."""

    def __init__(self, dim: int = 8, hidden: int = 16, drop: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__(
            dim, 1, hidden / dim, 1, proj_drop=drop, drop_path=drop_path, norm_layer=nn.LayerNorm
        )
        self.norm1, self.attn, self.drop_path1 = nn.Identity(), Nothing(), nn.Identity()
        for parameter in self.norm2.parameters():
            nn.init.normal_(parameter)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        with plain_forms():
            return self(x)


@pytest.fixture(autouse=True)
def fast_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one each time the fast form runs."""
    calls: list[int] = []
    fast = mix_block.mix_ffn
    monkeypatch.setattr(mix_block, "mix_ffn", lambda *a, **k: calls.append(1) or fast(*a, **k))
    return calls


def assert_equal(module: Half, x: torch.Tensor) -> None:
    """Outputs and all gradients."""
    reference = copy.deepcopy(module)
    for function in (module, reference.plain):
        torch.manual_seed(1)
        output = function(x)
        weight = torch.randn(output.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
        parameters = [p for p in module.parameters() if p.requires_grad]
        if function is module:
            actual = output, *torch.autograd.grad((output * weight).sum(), [x, *parameters])
    parameters = [p for p in reference.parameters() if p.requires_grad]
    expected = output, *torch.autograd.grad((output * weight).sum(), [x, *parameters])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        torch.manual_seed(1)
        torch.testing.assert_close(module(x), expected[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("elements", [1, 16 * 7 * 9, 40 * 7 * 9 * 16, 2**22])  # one row and more, an image
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("keeps", [0, 1, 2])  # maps
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_equals_plain_form(
    elements: int,
    dilation: int,
    keeps: int,
    drop_path: float,
    monkeypatch: pytest.MonkeyPatch,
    fast_calls: list[int],
) -> None:
    monkeypatch.setattr(mix_ffn, "_STRIP_ELEMENTS", elements)
    monkeypatch.setattr(mix_ffn, "_KEPT_STRIP_ELEMENTS", elements)
    monkeypatch.setattr(mix_ffn, "_KEPT_FROM", 8 if keeps else 9)
    monkeypatch.setattr(mix_ffn, "_BOTH_KEPT_UP_TO", 8 if keeps == 2 else 7)
    module = Half(drop_path=drop_path).double()
    module.mlp.set_dilation(dilation)
    assert_equal(module, torch.randn(3, 40, 7, 8, dtype=torch.float64, requires_grad=True))
    assert len(fast_calls) == 2


@pytest.mark.parametrize(("dim", "maps"), [(32, 0), (64, 2), (128, 2), (160, 1), (320, 1)])
def test_keeps_as_many_hidden_maps_as_channels_warrant(dim: int, maps: int) -> None:
    module, x = Half(dim, 4 * dim), torch.randn(1, 16, 16, dim, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    assert kept.count(4 * x.numel()) == maps


@pytest.mark.parametrize("change", ["dropout", "hook", "no bias", "no norm weights", "frozen", "other norm"])
def test_other_layers_train_as_they_would(change: str, fast_calls: list[int]) -> None:
    module = Half(drop=0.5 if change == "dropout" else 0.0, drop_path=0.5 if change != "dropout" else 0.0)
    calls = []
    if change == "hook":
        module.mlp.fc1.register_forward_hook(lambda *args: calls.append(1))
    if change == "no bias":
        module.norm2.bias = module.mlp.fc1.bias = module.mlp.dwconv.bias = module.mlp.fc2.bias = None
    if change == "no norm weights":
        module.norm2 = nn.LayerNorm(8, elementwise_affine=False)
    if change == "frozen":
        module.mlp.fc1.requires_grad_(False)
    if change == "other norm":
        module.norm2 = nn.RMSNorm(8)
    assert_equal(module.double(), torch.randn(2, 5, 6, 8, dtype=torch.float64, requires_grad=True))
    assert bool(calls) == (change == "hook")
    assert bool(fast_calls) == (change not in ("hook", "other norm"))


def test_hooks_on_a_blocks_parts_are_called() -> None:
    block, calls = Block(8, 2, 2.0, 1), []
    for name in ("attn", "mlp", "norm2"):
        getattr(block, name).register_forward_hook(lambda *args, name=name: calls.append(name))
    block(torch.randn(1, 4, 4, 8))
    assert calls == ["attn", "norm2", "mlp"]


@pytest.mark.parametrize("channels", [8, 64, 160])  # none of the maps kept, both, one
def test_weights_that_are_swapped_for_one_pass(channels: int) -> None:
    module = Half(channels, 2 * channels).double()
    weights = {name: torch.randn_like(value).requires_grad_() for name, value in module.named_parameters()}
    x = torch.randn(1, 5, 6, channels, dtype=torch.float64)
    output = functional_call(module, weights, (x,))
    actual = torch.autograd.grad(output.square().sum(), list(weights.values()))
    module.load_state_dict(weights)
    expected = torch.autograd.grad(module.plain(x).square().sum(), list(module.parameters()))
    torch.testing.assert_close(actual, expected)


def test_linear_layer_on_maps_has_a_second_derivative() -> None:
    layer, x = nn.Linear(4, 6), torch.randn(2, 3, 5, 4, requires_grad=True)
    penalties = []
    for output in (linear(layer, x), layer(x)):
        (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(gradient.square().sum(), layer.weight)[0])
    torch.testing.assert_close(penalties[0], penalties[1], atol=1e-4, rtol=1e-4)


def test_input_with_channels_first_in_memory() -> None:
    assert_equal(Half().double(), torch.randn(2, 8, 5, 6).double().permute(0, 2, 3, 1).requires_grad_())


def test_stochastic_depth_under_autocast() -> None:
    module, x = Half(drop_path=0.5), torch.randn(16, 5, 6, 8, requires_grad=True)
    torch.manual_seed(1)
    expected = module.plain(x)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x)
    assert output.dtype == torch.float32  # that of the shortcut
    torch.testing.assert_close(output, expected, rtol=0, atol=0.1)
    dropped = (output == x).flatten(1).all(1)
    assert torch.equal(dropped, (expected == x).flatten(1).all(1)) and dropped.any() and not dropped.all()
