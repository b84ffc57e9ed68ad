"""EoMT in the training loop: its loss, masked attention that fades, and the metrics of its logits."""

import logging

import numpy as np
import pytest
import tiny_vits  # noqa: F401  registers models
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.losses import QueryLoss
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import QueryModule

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def _module(**kwargs) -> QueryModule:
    model_args = {"num_queries": 4, "query_blocks": 2}
    palette = [(0, 0, 0), (255, 255, 255)]
    return QueryModule(
        "eomt", "vz-tiny_vit", None, ["dark", "bright"], palette, 64, model_args=model_args, **kwargs
    )


def _pairs(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    masks = (
        np.random.default_rng(0).integers(0, 2, (count, 2, 2)).repeat(32, 1).repeat(32, 2).astype(np.uint8)
    )
    return [(np.repeat(60 + 120 * mask[..., None], 3, 2), mask) for mask in masks]


class _Progress(Callback):
    """Notes how likely masked attention is in each step, and the losses of the epochs."""

    def __init__(self) -> None:
        self.probabilities, self.losses = [], []

    def on_train_batch_end(self, trainer: Trainer, module: QueryModule, *args) -> None:
        self.probabilities.append(module.model.mask_probabilities)

    def on_train_epoch_end(self, trainer: Trainer, module: QueryModule) -> None:
        # The training's own loss falls anyway: it is summed over ever fewer predictions.
        self.losses.append(float(trainer.callback_metrics["val_loss"]))


def test_learns_in_lightning_while_masked_attention_fades() -> None:
    seed_everything(0, verbose=False)
    train, val = (SegmentationDataset(_pairs(8), 64, 2) for _ in range(2))
    progress, module = _Progress(), _module(learning_rate=2e-3)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=20,
        callbacks=[progress],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, SegmentationDataModule(train, val, None, batch_size=4))
    # 40 steps: as the model itself anneals masks at 0, 1/40, 2/40, ... of a training
    expected = []
    for step in range(40):
        module.model.anneal_masks(step / 40)
        expected.append(module.model.mask_probabilities)
    assert progress.probabilities == expected
    assert expected[0] == [1, 1] and expected[16] == [pytest.approx(0.4**0.9), 1] and expected[-1] == [0, 0]
    assert progress.losses[-1] < 0.2 * progress.losses[0]
    assert float(trainer.callback_metrics["val_miou"]) > 0.9  # a guess has 0.33


def test_loss_and_logits_are_the_models() -> None:
    module = _module(ignore_index=9).eval()
    module.model.anneal_masks(0.0)  # as in the middle of a training: three predictions
    image, mask = torch.rand(2, 3, 50, 64), torch.randint(0, 2, (2, 50, 64))
    mask[:, :10] = 9
    with torch.no_grad():
        loss, logits = module.loss_and_logits(image, mask, "val")
        predictions = module.model(image, return_queries=True)
    assert torch.equal(logits, module.model(image)) and logits.shape == (2, 2, 50, 64)
    assert len(predictions) == 3
    torch.testing.assert_close(loss, QueryLoss(2, ignore_index=9, num_points=None)(predictions[-1:], mask))
