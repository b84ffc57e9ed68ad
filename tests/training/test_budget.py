"""How long the quickstart trains, on fast and slow machines."""

from types import SimpleNamespace

import pytest
import torch

from vitseg_zoo.training import budget
from vitseg_zoo.training.budget import Plan, plan, time_steps


class _Clock:
    """Time passes when a step says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("step", "expected"), [(0.002, 50), (0.05, 9), (0.3, 8), (2.0, 2), (60.0, 1)])
def test_the_plan_fits_the_machine(step: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr("vitseg_zoo.cost.time", SimpleNamespace(perf_counter=clock))

    def train(*_: object) -> torch.Tensor:
        clock.now += step
        return torch.zeros(1, requires_grad=True).sum()

    layer = torch.nn.Conv2d(3, 3, 1)
    layer.model, layer.loss = torch.nn.Identity(), train
    monkeypatch.setattr(budget, "choose_precision", lambda *_: "32-true")
    picture = torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.int64)
    cost = time_steps(layer, [picture] * 2)
    assert cost.seconds == pytest.approx(step)

    made = plan(30.0, cost.seconds, most_steps=62, validation_batches=4)
    assert made.epochs == expected
    assert made.steps <= 62
    validation = step * 4 / 3
    seconds = made.epochs * (made.steps * step + validation)
    assert 0.85 * 30 < seconds < 1.15 * 30 or made in (Plan(50, 62), Plan(1, 1))
