"""Trainings of two processes, which talk by gloo: what one process would give, and nothing to complain of."""

import sys
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.transforms import flip_and_jitter
from vitseg_zoo.training.config import RunConfig
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import QueryModule
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.module import SegmentationModule
from vitseg_zoo.training.pictures import read_metrics

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked"),
    pytest.mark.filterwarnings("ignore", "error:Grad strides do not match", "error:.*unused parameter"),
]
VIT = "vz-vitseg_tiny_patch16_128"
MODELS = {
    "vitseg": (VIT, {"encoder_blocks": 1}),
    "fusedsegformer": ("vz-mit_b0", {}),
    "segmenter": (VIT, {"encoder_blocks": 1}),
    "eomt": (VIT, {"encoder_blocks": 3, "num_queries": 4}),
    "unet": (VIT, {"encoder_blocks": 4, "decoder_channels": (32, 16, 16, 8, 8)}),
}


def _pairs(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(count)
    masks = rng.integers(0, 2, (count, 4, 4)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    noise = rng.integers(0, 90, (count, 64, 64, 3))
    return [
        ((80 * mask[..., None] + more).astype(np.uint8), mask)
        for mask, more in zip(masks, noise, strict=True)
    ]


def _train(out: Path, arch: str, encoder_name: str, model_args: dict, processes: int, epochs: int) -> None:
    """Trains on 8 images, 4 a step whatever the number of processes, and measures on 5."""
    sizes = {"image_size": 64, "batch_size": 4 // processes, "precision": "32-true"}
    many = {"devices": str(processes), "strategy": "ddp_fork" if processes > 1 else "auto"}
    config = RunConfig(out=out, epochs=epochs, **sizes, **many)
    prepare(config)
    train = SegmentationDataset(_pairs(8), 64, 2, augment=flip_and_jitter())
    data = SegmentationDataModule(train, SegmentationDataset(_pairs(5), 64, 2), None, config.batch_size)
    module = (QueryModule if arch == "eomt" else SegmentationModule)(
        *(arch, encoder_name, None, ["a", "b"], [(0, 0, 0), (9, 9, 9)], 64),
        model_args=model_args,
        channels_last=True,
    )
    scores = {"miou": 0.0, "pixel_accuracy": 0.0}
    fit(module, data, config, select=None, score=lambda: scores, accelerator="cpu")


@pytest.mark.parametrize("arch", MODELS)
def test_no_warning_of_strides_or_unused_parameters(arch: str, tmp_path: Path):
    _train(tmp_path, arch, *MODELS[arch], processes=2, epochs=1)
    assert read_metrics(tmp_path / "metrics.csv")["step"] == [2]


def test_two_processes_give_what_one_gives(tmp_path: Path):
    # No dropout, and no batch norm, which would need SyncBatchNorm: PyTorch has that for GPUs alone.
    model = ("vitseg", "vz-vit_tiny_patch16_224", {"encoder_blocks": 2})
    for processes in (1, 2):
        _train(tmp_path / str(processes), *model, processes=processes, epochs=2)
    one, two = (read_metrics(tmp_path / name / "metrics.csv") for name in ("1", "2"))
    for name in one.keys() - {"seconds"}:  # that of 5 images, too, which two processes cannot halve
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, err_msg=name)
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("1", "2")
    )
    for name, value in one.items():  # Adam divides small differences by small gradients
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_the_fused_head_calls_a_synchronized_batch_norm(monkeypatch: pytest.MonkeyPatch):
    model = smp.create_model("fusedsegformer", "vz-mit_b0", None, classes=2)
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    norm, calls = model.decoder.fuse_stage[1], []
    assert type(norm) is torch.nn.SyncBatchNorm and model.decoder.why_plain() is None
    forward = torch.nn.SyncBatchNorm.forward

    def spy(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        calls.append(self)
        return forward(self, x)

    monkeypatch.setattr(torch.nn.SyncBatchNorm, "forward", spy)
    model(torch.rand(2, 3, 64, 64)).mean().backward()
    assert calls == [norm]
