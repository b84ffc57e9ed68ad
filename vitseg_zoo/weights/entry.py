"""An entry of the catalog: weights by name, what they build, where they are, and what is known of them."""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from vitseg_zoo.class_names import Palette

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

NVIDIA_LICENSE = "NVIDIA Source Code License for SegFormer (research and evaluation only)"

# Where the package keeps its own files; the file's name is the entry's.
PACKAGED = files("vitseg_zoo") / "weights" / "files"


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """Weights by name: what they build, where they are, and what is known of them."""

    name: str  # model and tag, "segformer_b2.nv_ade20k_512"
    kind: Literal["model", "encoder"]  # a complete segmentation model, or an encoder
    architecture: str  # of a model, as `smp.create_model` takes it; of an encoder, its name in timm
    arguments: dict[str, Any] = field(default_factory=dict)  # what else `smp.create_model` is given

    repo_id: str = ""  # repository on the Hugging Face Hub
    revision: str = "main"  # its commit, tag or branch; what a branch holds is fixed when it is downloaded
    filenames: tuple[str, ...] = ("model.safetensors",)  # the first of these that the repository has
    url: str | None = None  # instead of a repository: https:, or file: (of a packaged file, too)
    # Of the file, in hexadecimal digits. None: not pinned; the download is compared with what the Hub states.
    sha256: str | None = None
    megabytes: float | None = None  # of the file, about; the exact size is the Hub's to say
    parameters: float | None = None  # of a model, in millions

    class_names: tuple[str, ...] = ()  # in the order of the model's outputs
    palette: Palette = ()  # RGB color of each class, 0 to 255
    mean: tuple[float, ...] = IMAGENET_MEAN  # of the images in [0, 1] that the model takes
    std: tuple[float, ...] = IMAGENET_STD  # likewise
    input_size: tuple[int, int] | None = (
        None  # height and width of the crops in training; others are taken, too
    )
    fit: str | None = None  # how an image comes to the model: see `vitseg_zoo.Predictor`
    mode: str | None = None  # what its logits are, in SMP's words: multiclass, binary or multilabel

    license: str = "unknown"  # of the weights, not of the code: SPDX identifier or name
    commercial_use: bool | None = None  # whether it allows it; None: read the license
    training_data: str = ""  # what the weights were trained on
    metric: str = ""  # as published, in one phrase
    metric_source: str = ""  # who published it
    recipe: str = ""  # how it was trained, of models of our own
    limits: str = ""  # what it is not good for
    origin: str = ""  # what a file of the user's or the package's own was made from, as it says itself

    @property
    def file_format(self) -> str:
        """`"safetensors"`, or `"pickle"`, read with `torch.load(weights_only=True)`, which runs no code."""
        names = [self.url] if self.url else self.filenames
        formats = ["safetensors" if name.endswith(".safetensors") else "pickle" for name in names]
        return " or ".join(dict.fromkeys(formats))

    @property
    def source(self) -> str:
        """Where the weights come from, as one address."""
        if self.url is not None and self.url.startswith(Path(str(PACKAGED)).as_uri()):
            return "in the package"
        return self.url or f"https://huggingface.co/{self.repo_id}/tree/{self.revision}"
