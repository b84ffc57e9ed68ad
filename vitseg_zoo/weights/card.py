"""The model card: what a model is, what it was trained on, what it may be used for, and how to run it."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from vitseg_zoo.terminal import printable
from vitseg_zoo.weights.entry import IMAGENET_MEAN, IMAGENET_STD
from vitseg_zoo.weights.metadata import without_folders

_CARD = """
---
{{ card_data }}
---
# {{ title }}

A model for semantic segmentation: `{{ architecture }}` of segmentation_models_pytorch with vitseg-zoo.

```python
# pip install vitseg-zoo
import segmentation_models_pytorch as smp
import torch

model = smp.from_pretrained({{ where }}).eval()
image = torch.rand(1, {{ channels }}, {{ height }}, {{ width }})  # RGB in [0, 1]
mean, std = torch.tensor({{ mean }}), torch.tensor({{ std }})
with torch.inference_mode():
    logits = model((image - mean[:, None, None]) / std[:, None, None])
{{ labels }}
```

{{ facts }}

## Classes

{{ classes }}

## Arguments

```python
{{ arguments }}
```
"""

_FACTS = {
    "metric": "Result",
    "metric_source": "Measured by",
    "training_data": "Trained on",
    "recipe": "Recipe",
    "limits": "Limits",
    "license": "License of the weights",
    "source": "Source",
}
# Names of licenses that the Hub knows.
_SPDX = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0"}


def make_model_card(description: Mapping[str, Any], where: str, title: str) -> ModelCard:
    """Write the card of a model.

    Args:
        description: What a saved file says of its model.
        where: The folder or the repository that `smp.from_pretrained` is to read.
        title: Heading.

    Returns:
        The card; what is not known of the model is left out.
    """
    license = description.get("license")
    is_known = str(license).lower() in _SPDX
    height, width = description.get("input_size") or (256, 256)
    names = description.get("class_names") or ()
    labels = f"labels = logits.argmax(1)  # (1, {height}, {width})"
    if description.get("mode") == "multilabel" or description["arguments"].get("classes") == 1:
        labels = "masks = logits > 0  # by a sigmoid: (1, classes, height, width), where each class is"
    facts = [
        f"- **{label}:** {_text(description[key])}" for key, label in _FACTS.items() if description.get(key)
    ]
    if description.get("commercial_use") is False:
        facts.append("- **Commercial use of the weights is not allowed.**")
    data = ModelCardData(
        license=None if license is None else license.lower() if is_known else "other",
        license_name=None if license is None or is_known else license,
        library_name="segmentation-models-pytorch",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "segmentation-models-pytorch", "vitseg-zoo"],
    )
    return ModelCard.from_template(
        data,
        template_str=_CARD,
        title=title,
        architecture=description["architecture"],
        where=repr(where),
        channels=description["arguments"].get("in_channels", 3),
        labels=labels,
        height=height,
        width=width,
        mean=list(description.get("mean") or IMAGENET_MEAN),
        std=list(description.get("std") or IMAGENET_STD),
        facts="\n".join(facts),
        classes="\n".join(f"{index}. {_text(name)}" for index, name in enumerate(names))
        or f"{description['arguments'].get('classes')}, whose names are not known.",
        arguments=repr(description["arguments"]),
    )


def _text(value: object) -> str:
    """Escape a text from a file for a line of Markdown: it makes no heading, link or tag, names no folder."""
    line = without_folders(printable(value))
    return re.sub(r"([\\`*_\[\]<>#|~&$!])", r"\\\1", line)
