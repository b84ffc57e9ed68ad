"""Memory of large outputs is used again, but never while somebody holds it."""

import mmap

import pytest
import torch

from vitseg_zoo.ops import memory
from vitseg_zoo.ops.bilinear import resample

linux_only = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="memory of its own is for Linux")


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SMALLEST", 1)
    monkeypatch.setattr(memory, "_kept", [])


@linux_only
def test_only_memory_that_nobody_holds_is_used_again() -> None:
    first = memory.empty((2, 3), torch.float32)
    address, part = first.data_ptr(), first[1:].numpy()  # a view of a view
    del first
    second = memory.empty((2, 3), torch.float32)
    assert second.data_ptr() != address and part.shape == (1, 3)


@linux_only
def test_outputs_of_two_sizes_take_turns() -> None:
    addresses = []
    for _ in range(3):  # as steps of a training: both are there at a time, then neither
        outputs = [memory.empty((2, n), torch.float32) for n in (3, 4)]
        addresses.append([output.data_ptr() for output in outputs])
        del outputs
    assert addresses[0] == addresses[1] == addresses[2]


@linux_only
def test_oldest_memory_is_given_back_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LARGEST", 40)
    for n in (3, 4, 2):  # 12, 16 and 8 bytes, then 24
        memory.empty((n,), torch.float32)
    assert [len(memory) for memory, _ in memory._kept] == [12, 16, 8]
    memory.empty((6,), torch.float32)
    assert [len(memory) for memory, _ in memory._kept] == [8, 24]


@linux_only
def test_next_output_of_the_same_size_is_made_in_it() -> None:
    x = torch.rand(1, 2, 8, 8)
    with torch.no_grad():
        output = resample(x, (64, 64))
        address = output.data_ptr()
        del output
        output = resample(x, (64, 64))
        assert output.data_ptr() == address
        other = resample(x + 1, (64, 64))
    torch.testing.assert_close(other, output + 1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_is_an_ordinary_tensor(memory_format: torch.memory_format) -> None:
    output = memory.empty((2, 3, 4, 5), torch.bfloat16, memory_format)
    assert output.is_contiguous(memory_format=memory_format) and not output._is_view()
    assert output.untyped_storage().nbytes() == output.nbytes  # torch.save writes no more
    with torch.no_grad():
        output = memory.empty((2, 3), torch.float32)
    output.fill_(1).mul_(torch.ones(3, requires_grad=True)).sum().backward()


def test_system_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert memory.empty((2, 3), torch.float32).shape == (2, 3)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert memory.empty((2, 3), torch.float32).shape == (2, 3)


@linux_only
def test_very_large_outputs_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LARGEST", 8)
    memory.empty((2, 3), torch.float32)
    assert memory._kept == []
