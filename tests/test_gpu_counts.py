"""The GPU's form of every architecture, by counts: a change that adds a kernel or a copy is seen.

Where it is meant, `python tests/gpu_counts.py` writes the table anew, and the diff says what it costs.
"""

import gpu_counts
import pytest
import torch
from torch import nn


def test_every_architecture_does_what_the_table_says() -> None:
    versions, expected = gpu_counts.read_table()
    if versions != gpu_counts.VERSIONS:
        pytest.skip(f"the table is of {versions}")
    counted = [{key: str(value) for key, value in row.items()} for row in gpu_counts.rows()]
    assert counted == expected


def test_nothing_waits_for_the_gpu() -> None:
    assert {row["waits"] for row in gpu_counts.read_table()[1]} == {"0"}


def test_the_counter_counts() -> None:
    counter = gpu_counts.GpuCounts()
    with gpu_counts.fake_gpu(), counter:
        x = torch.empty(1, 3, 4, 4, device="cuda")
        y = x.permute(0, 2, 3, 1).contiguous()  # one kernel, and a copy of the layout
        y = y + y
    assert counter.counts == {"kernels": 2, "bytes": 4 * 3 * 4 * 4 * 4, "layout_copies": 1, "waits": 0}
    with gpu_counts.fake_gpu(), counter:
        torch.empty(2, 3).to("cuda")
    assert counter.counts["waits"] == 1


def test_a_convolution_copies_what_has_another_format() -> None:
    conv = nn.Conv2d(3, 8, 3)
    with gpu_counts.fake_gpu(conv):
        image = torch.empty(1, 3, 8, 8, device="cuda")
        same = gpu_counts.count(conv, image, torch.float32)
        mixed = gpu_counts.count(conv, image.to(memory_format=torch.channels_last), torch.float32)
    assert same == {
        "kernels": 2,
        "bytes": 4 * (192 + 216 + 8 + 288 + 2 * 288),
        "layout_copies": 0,
        "waits": 0,
    }
    assert (mixed["kernels"], mixed["layout_copies"]) == (3, 1)
