"""What the zoo's architectures add to SMP's `save_pretrained`, `from_pretrained` and `push_to_hub`."""

from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import ModelCard
from segmentation_models_pytorch.base import SegmentationModel


class HubModel(SegmentationModel):
    """SMP's base of all models with the zoo's own model card, and with what its files say of an encoder."""

    # What a file says of the encoder's own arguments is given to the architecture, SMP's take none.
    passes_arguments_to_encoder: ClassVar[bool] = True

    @classmethod
    def from_pretrained(
        cls, *args: Any, encoder_weights: str | None = None, **kwargs: Any
    ) -> SegmentationModel:
        """Load a saved model; the encoder's weights are in its file, so that the encoder's own stay away."""
        return super().from_pretrained(*args, encoder_weights=encoder_weights, **kwargs)

    @classmethod
    def _from_pretrained(cls, **kwargs: Any) -> SegmentationModel:
        """Build and load what a configuration describes, also one of version 0.1."""
        from vitseg_zoo.weights.metadata import current_arguments

        return super()._from_pretrained(**current_arguments(cls.__name__.lower(), kwargs))

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Save as SMP does; the card's snippet reads what is saved, with the encoder as it is configured."""
        from vitseg_zoo.weights.metadata import METADATA, OF_THE_MODEL, encoder_arguments

        channels, arguments = encoder_arguments(self)
        self.config.update(channels | arguments)
        where = kwargs.get("repo_id") or Path(save_directory).resolve().name
        about = {key: kwargs.pop(key) for key in (*METADATA, *OF_THE_MODEL) if key in kwargs}
        kwargs["model_card_kwargs"] = {"where": where, **about, **(kwargs.get("model_card_kwargs") or {})}
        return super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Publish as SMP does, with a card whose snippet reads what is published."""
        from vitseg_zoo.weights.download_errors import explained_upload

        kwargs["model_card_kwargs"] = {"where": repo_id, **(kwargs.get("model_card_kwargs") or {})}
        with explained_upload(repo_id):
            return super().push_to_hub(repo_id, *args, **kwargs)

    def generate_model_card(
        self,
        *args: Any,
        where: str = "<this folder or repository>",
        metrics: Any = None,
        dataset: str | None = None,
        **metadata: Any,
    ) -> ModelCard:
        """Write the card; `huggingface_hub` calls this with the `model_card_kwargs` of `save_pretrained`.

        Args:
            args: There for SMP's interface.
            where: What `smp.from_pretrained` is to read in the card's snippet.
            metrics: SMP's word for `metric`.
            dataset: SMP's word for `training_data`.
            metadata: What `vitseg_zoo.save_model` takes.

        Returns:
            The card.
        """
        from vitseg_zoo.weights.card import make_model_card
        from vitseg_zoo.weights.metadata import describe_model

        if metrics is not None:
            metadata.setdefault("metric", str(metrics))
        if dataset is not None:
            metadata.setdefault("training_data", dataset)
        return make_model_card(describe_model(self, metadata), where, type(self).__name__)
