"""`vitseg bench segformer` in its smallest form."""

import re

import pytest
import torch

from vitseg_zoo.cli import bench_segformer as bench


def test_pair_of_smp(capsys: pytest.CaptureFixture) -> None:
    peer, ours = bench.smp_pair("b0", classes=3)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), peer(image), atol=1e-4, rtol=1e-4)
    bench._bench_size("b0", peer, ours, size=64, rounds=1)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[1] for row in rows] == ["SMP, logits, 64", "SMP, labels, 64"]
    times = r"\d+ ms \| \d+ ms \| \*\*\d+\.\d\*\* \| \d+ ms \|"
    assert all(re.fullmatch(rf"\| B0 \| SMP, \w+, 64 \| {times}", row) for row in rows)


def test_runs_alternate_after_one_that_does_not_count() -> None:
    calls = []
    medians = bench.alternate(lambda: calls.append("peer"), lambda: calls.append("ours"), rounds=2)
    assert calls == ["peer", "ours"] * 3
    assert min(medians) > 0
