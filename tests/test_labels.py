"""Labels in strips against the arg-max of full logits."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from vitseg_zoo.inference import labels
from vitseg_zoo.inference.labels import predict_labels

ARCHITECTURES = sorted({*smp.MODEL_ARCHITECTURES_MAPPING} - {"dpt", "eomt"})
ENCODERS = {"vitseg": "vz-vitseg_tiny_patch16_128", "segmenter": "vz-vitseg_tiny_patch16_128"}


def assert_same_labels(model: nn.Module, image: torch.Tensor) -> None:
    """Equal to the plain way wherever the two largest logits differ by more than rounding."""
    predicted = predict_labels(model, image)
    with torch.inference_mode():
        logits = model(image)
    logits = logits[0] if isinstance(logits, tuple) else logits
    assert predicted.dtype == torch.int64 and predicted.shape == image.shape[:1] + image.shape[2:]
    largest = logits.topk(2, dim=1)
    decided = (largest.values[:, 0] - largest.values[:, 1]) > 1e-5 * logits.abs().max()
    assert decided.float().mean() > 0.9
    assert torch.equal(predicted[decided], largest.indices[:, 0][decided])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_arg_max_of_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_STRIP_ELEMENTS", 11 * 96 * 2 * 5)  # several strips, the last one shorter
    model = smp.create_model(name, ENCODERS.get(name, "resnet18"), encoder_weights=None, classes=11)
    assert_same_labels(model, torch.rand(2, 3, 128, 128) if name == "pan" else torch.rand(2, 3, 64, 96))


def test_equals_arg_max_in_one_strip_and_with_labels() -> None:
    model = smp.create_model("unet", "resnet18", encoder_weights=None, classes=4, aux_params={"classes": 2})
    assert_same_labels(model, torch.rand(1, 3, 64, 64))
    model = smp.create_model("vitseg", ENCODERS["vitseg"], encoder_weights=None, classes=4)
    assert_same_labels(model, torch.rand(1, 3, 50, 33))


@pytest.mark.parametrize("activation", ["softmax2d", "sigmoid", "argmax2d"])
def test_activations(activation: str) -> None:
    model = smp.create_model("fpn", "resnet18", None, classes=5, activation=activation).eval()
    image = torch.rand(1, 3, 64, 64)
    plain = smp.create_model("fpn", "resnet18", None, classes=5).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(predict_labels(model, image), predict_labels(plain, image))


def test_one_class_is_there_or_not() -> None:
    model = smp.create_model("fpn", "resnet18", encoder_weights=None, classes=1).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        model.segmentation_head[0].bias -= model(image).median()
        expected = (model(image)[:, 0].sigmoid() > 0.5).long()
    assert (predict_labels(model, image) == expected).float().mean() > 0.999
    assert 0 < expected.float().mean() < 1


@pytest.mark.parametrize("first", [0, 8])
def test_nan_is_as_in_arg_max(first: int) -> None:
    model = smp.FPN("resnet18", encoder_weights=None, classes=11).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        model.segmentation_head[0].bias[first:] = torch.nan
        assert torch.equal(predict_labels(model, image), model(image).argmax(1))


def test_any_other_module() -> None:
    assert_same_labels(nn.Conv2d(3, 6, 3, padding=1), torch.rand(1, 3, 20, 30))


def test_the_whole_logits_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_STRIP_ELEMENTS", 150 * 128 * 8)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            output = func(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor):
                largest = max(largest, output.numel())
            return output

    model = smp.create_model("segformer", "resnet18", None, classes=150, decoder_segmentation_channels=16)
    with Sizes():
        predict_labels(model, torch.rand(1, 3, 128, 128))
    assert largest <= max(150 * 128 * 8, 64 * 64 * 64)  # a strip, or the encoder's first map
