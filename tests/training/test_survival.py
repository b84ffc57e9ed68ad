"""What may happen to a training: killed, told to end, diverging, a full disk, a second one beside it."""

import json
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from vitseg_zoo.recipes import own_data
from warm_python import WarmPython, start_script

from vitseg_zoo.training.callbacks import TrainingStopped
from vitseg_zoo.training.checkpoints import AtomicCheckpointIO
from vitseg_zoo.training.loop import prepare

RECIPE = Path(__file__).parents[2] / "recipes" / "own_data.py"
SMALL = {"image_size": 64, "crop_size": 64, "batch_size": 2, "precision": "32-true"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six images and masks of noise in either part."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, channels, high in (("images", (3,), 256), ("masks", (), 2)):
            (folder / split / kind).mkdir(parents=True)
            for index in range(6):
                pixels = rng.integers(0, high, (64, 64, *channels), np.uint8)
                Image.fromarray(pixels).save(folder / split / kind / f"{index}.png")
    (folder / "classes.txt").write_text("a\nb\n")
    return folder


def _start(data: Path, out: Path, *words: str) -> WarmPython:
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]
    return start_script(RECIPE, "--data", data, "--out", out, *options, *words)


def _wait_for(path: Path, process: WarmPython) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def test_a_full_disk_is_the_systems_error_and_keeps_the_earlier_checkpoint(tmp_path: Path):
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"weight": torch.zeros(1)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            io.save_checkpoint({"weight": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(path, weights_only=True) == {"weight": torch.zeros(1)}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_second_training_into_the_same_folder_is_refused(data: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    with (
        FileLock(out / ".lock"),
        pytest.raises(OSError, match=r"Another process trains into .*another --out"),
    ):
        prepare(own_data.Config(data=data, out=out))
    assert not (out / "config.json").exists()


@pytest.mark.parametrize(
    "options, where",
    [
        ({"epochs": 2}, r"batch \d, of train/images/\d\.png, train/images/\d\.png: "),
        ({"epochs": 1, "batch_size": 6}, "measured after step 1: "),
    ],
)
def test_a_diverging_training_leaves_no_scores_and_no_checkpoint(
    options: dict, where: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # One step is an epoch in the second: what it did is seen in validation alone.
    monkeypatch.setattr(own_data, "warmup_cosine", lambda optimizer, *_, **__: _constant(optimizer))
    config = own_data.Config(**{**SMALL, "data": data, "out": tmp_path / "out", "lr": 1e30} | options)
    with pytest.raises(TrainingStopped, match=rf"the loss is (nan|inf) in epoch 1, {where}.*lower --lr"):
        own_data.main(config)
    assert not list((tmp_path / "out").rglob("*.ckpt"))
    assert not (tmp_path / "out" / "results.json").exists()


def _constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--crop", "--crop-size", "32", "--num-workers", "1")])
def test_killed_at_any_moment_and_resumed_it_equals_an_uninterrupted_one(
    words: tuple[str, ...], data: Path, tmp_path: Path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = _start(data, whole, "--epochs", "4", *words)
    assert process.wait() == 0, process.communicate()[1]

    kills, rng = 0, np.random.default_rng(0)
    last = killed / "checkpoints" / "last.ckpt"
    for awaited in (killed / "config.json", killed / "metrics.csv", last):
        process = _start(data, killed, "--epochs", "4", *words, *(["--resume"] if kills else []))
        _wait_for(awaited, process)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills
    process = _start(data, killed, "--epochs", "4", *words, "--resume")
    said = process.communicate()[1]
    if process.returncode:  # the last kill came behind the last epoch
        assert "is of epoch 4 already" in said, said
    before, after = (
        torch.load(out / "checkpoints" / "last.ckpt", weights_only=True) for out in (whole, killed)
    )
    assert before["state_dict"].keys() == after["state_dict"].keys()
    for name, value in before["state_dict"].items():
        torch.testing.assert_close(after["state_dict"][name], value, rtol=0, atol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_end_it_says_how_to_go_on(number: int, status: int, data: Path, tmp_path: Path):
    out = tmp_path / "out"
    process = _start(data, out, "--epochs", "500")
    _wait_for(out / "checkpoints" / "last.ckpt", process)
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == status, said
    assert "last.ckpt is whole: --resume goes on from it" in said and "Traceback" not in said
    assert not (out / "results.json").exists()


@pytest.mark.slow
def test_two_processes_of_one_training_share_its_folder(data: Path, tmp_path: Path):
    process = _start(data, tmp_path / "out", "--epochs", "1", "--batch-size", "3", "--devices", "2")
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert json.loads((tmp_path / "out" / "results.json").read_text())["epochs"] == 1
