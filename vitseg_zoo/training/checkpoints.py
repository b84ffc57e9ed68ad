"""Checkpoints that are whole or not there, and whose best stays the best where their folder is moved."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vitseg_zoo.files import atomic_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it.

    Lightning writes to the system's folder of temporary files first. Where that is another file system, the
    target is then copied, and a training killed meanwhile leaves half of it. For local files alone.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with atomic_path(path) as partial, open(partial, "wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # A full disk is a failed check of PyTorch; what the system said is behind it.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which would forget the best score if its folder has another name.

    The first epoch after that would replace a better checkpoint.

    Args:
        args: see Lightning's.
        kwargs: see Lightning's.
    """

    @property
    def state_key(self) -> str:
        """Lightning's own, under which checkpoints of 0.1 keep a ModelCheckpoint's state."""
        return ModelCheckpoint.__qualname__ + super().state_key.removeprefix(type(self).__qualname__)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = self._moved(state_dict["best_model_path"])
        if best and Path(best).is_file():  # what was left behind is no longer the best
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_k_models": {self._moved(path): k for path, k in state_dict["best_k_models"].items()},
                **{
                    key: self._moved(state_dict[key])
                    for key in ("best_model_path", "kth_best_model_path", "last_model_path")
                },
            }
        super().load_state_dict(state_dict)

    def _moved(self, path: str) -> str:
        return str(Path(self.dirpath, Path(path).name)) if path else path
