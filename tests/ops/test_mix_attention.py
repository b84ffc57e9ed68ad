"""Efficient attention with the norm before it and the shortcut, against the plain form: all gradients."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitseg_zoo.cost import CPU_ATTENTION
from vitseg_zoo.encoders import mix_block
from vitseg_zoo.encoders.mix_block import Block
from vitseg_zoo.ops.dispatch import plain_forms


class Nothing(nn.Module):
    """A second half of a block that adds nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


class Half(Block):
    """The first half of a block, whose layers are far from their initial state."""

    def __init__(
        self, heads: int = 1, ratio: int = 2, drop_path: float = 0.0, attn_drop: float = 0.0, dim: int = 8
    ):
        super().__init__(dim, heads, 4, ratio, attn_drop=attn_drop, drop_path=drop_path)
        self.norm2, self.mlp, self.drop_path2 = nn.Identity(), Nothing(), nn.Identity()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        with plain_forms():
            return self(x)


@pytest.fixture(autouse=True)
def fast_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one each time the fast form runs."""
    calls: list[int] = []
    fast = mix_block.mix_attention
    monkeypatch.setattr(mix_block, "mix_attention", lambda *a, **k: calls.append(1) or fast(*a, **k))
    return calls


def outputs_and_gradients(half: Half, x: torch.Tensor) -> list[list[torch.Tensor]]:
    """Of the fast and of the plain form."""
    results = []
    for function in (half, half.plain):
        torch.manual_seed(1)
        output = function(x)
        weight = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view(output.shape)
        gradients = torch.autograd.grad((output * weight).sum(), [x, *half.parameters()])
        results.append([output, *gradients])
    return results


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("ratio", [2, 4])
@pytest.mark.parametrize("size", [(8, 12), (9, 15), (4, 4)])  # (9, 15) leaves positions that no window has
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_equals_plain_form(
    heads: int, ratio: int, size: tuple[int, int], drop_path: float, fast_calls: list[int]
) -> None:
    half = Half(heads, ratio, drop_path).double()
    x = torch.randn(5, *size, 8, dtype=torch.float64, requires_grad=True)
    actual, expected = outputs_and_gradients(half, x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    for module in (half.train(), half.eval()):
        with torch.no_grad():
            torch.manual_seed(1)
            fast = module(x)
            torch.manual_seed(1)
            torch.testing.assert_close(fast, module.plain(x), rtol=0, atol=1e-12)
    assert len(fast_calls) == 3


def test_plain_form_is_attention_as_it_is_written() -> None:
    half, x = Half(heads=2).double(), torch.randn(2, 9, 15, 8, dtype=torch.float64)
    attn, normed = half.attn, half.norm1(x)
    reduced = attn.norm(attn.sr(normed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    k, v = attn.kv(reduced).chunk(2, dim=-1)
    # (B, heads, positions, channels of a head)
    q, k, v = (t.flatten(1, 2).unflatten(2, (2, -1)).transpose(1, 2) for t in (attn.q(normed), k, v))
    out = (torch.softmax(q @ k.transpose(2, 3) / q.shape[3] ** 0.5, dim=3) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(half.plain(x), x + attn.proj(out.view(x.shape)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("heads", [1, 2])
def test_channels_from_which_the_reduction_has_products_as_gradients(heads: int) -> None:
    half = Half(heads, dim=64, drop_path=0.5).double()
    for parameter in half.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.randn(3, 9, 6, 64, dtype=torch.float64, requires_grad=True)
    actual, expected = outputs_and_gradients(half, x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_single_precision() -> None:
    half, x = Half(), 3 + torch.randn(2, 32, 32, 8)
    with torch.no_grad():
        torch.testing.assert_close(half(x), half.plain(x), rtol=0, atol=1e-5)


def test_one_head_needs_no_queries_and_no_projection_of_the_map() -> None:
    half, x = Half(), torch.randn(1, 64, 64, 8, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        half(x)
    maps = {tensor.data_ptr() for tensor in kept if tensor.numel() == x.numel()}
    assert len(maps) == 3  # the input, its normed form, and what attention returns


def test_equal_positions_and_a_norm_without_weight() -> None:
    half = Half().double()
    nn.init.zeros_(half.norm1.weight)
    x = torch.ones(1, 4, 4, 8, dtype=torch.float64, requires_grad=True)
    actual, expected = outputs_and_gradients(half, x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-8)


def test_attention_dropout_is_drawn_as_without_the_fast_form() -> None:
    half = Half(attn_drop=0.5).double()
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64, requires_grad=True)
    assert not torch.equal(half(x), half(x))
    actual, expected = outputs_and_gradients(half, x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    half.eval()
    actual, expected = outputs_and_gradients(half, x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["q", "sr", "proj"])
def test_hooks_on_layers_are_called(name: str, fast_calls: list[int]) -> None:
    half, x = Half(), torch.randn(1, 8, 8, 8)
    calls = []
    getattr(half.attn, name).register_forward_hook(lambda *_: calls.append(name))
    torch.testing.assert_close(half(x), half.plain(x), rtol=0, atol=1e-5)
    assert calls == [name, name] and not fast_calls


@pytest.mark.parametrize(
    "names", [["attn.q.bias"], ["attn.sr.bias"], ["norm1.bias"], ["norm1.bias", "norm1.weight"]]
)
def test_layers_without_some_of_their_weights(names: list[str]) -> None:
    half = Half().double()
    for name in names:
        module, _, kind = name.rpartition(".")
        half.get_submodule(module).register_parameter(kind, None)
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64, requires_grad=True)
    actual, expected = outputs_and_gradients(half, x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision(dtype: torch.dtype) -> None:
    half, x = Half(), torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        expected = half.plain(x)
        with torch.autocast("cpu", dtype):
            torch.testing.assert_close(half(x), expected, rtol=0, atol=0.1)
        output = half.to(dtype)(x.to(dtype))
    assert output.dtype is dtype
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.1)


def test_operations_are_counted_as_without_the_fast_form() -> None:
    half, x = Half(), torch.randn(1, 8, 8, 8)
    counts = []
    for function in (half, half.plain):
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            function(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("size", [(16, 16), (3, 16)])  # the second is lower than a window
def test_block_and_hooks_on_the_whole_attention(size: tuple[int, int]) -> None:
    block = Block(8, 1, 4, 4).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    calls = []
    with torch.no_grad():
        expected = block(x)
        block.attn.register_forward_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)
    assert calls == [1]
