"""Labels in strips against the arg-max of full logits."""

from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.modules import Activation
from torch import nn

from vitseg_zoo.inference import predict_labels as labels_module
from vitseg_zoo.inference.predict_labels import predict_labels

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
    monkeypatch.setattr(
        labels_module, "_STRIP_ELEMENTS", 11 * 96 * 2 * 5
    )  # several strips, the last one shorter
    model = smp.create_model(name, ENCODERS.get(name, "resnet18"), encoder_weights=None, classes=11)
    assert_same_labels(model, torch.rand(2, 3, 128, 128) if name == "pan" else torch.rand(2, 3, 64, 96))


def test_equals_arg_max_in_one_strip_and_with_labels() -> None:
    model = smp.create_model("unet", "resnet18", encoder_weights=None, classes=4, aux_params={"classes": 2})
    assert_same_labels(model, torch.rand(1, 3, 64, 64))
    model = smp.create_model("vitseg", ENCODERS["vitseg"], encoder_weights=None, classes=4)
    assert_same_labels(model, torch.rand(1, 3, 50, 33))


@pytest.mark.parametrize("size", [(150, 201), (41, 30), (64, 96)])
@pytest.mark.parametrize("classes", [1, 3, 11])
@pytest.mark.parametrize("name", ["vitseg", "unet", "segformer", "fusedsegformer", "eomt"])
def test_another_size(name: str, classes: int, size: tuple[int, int]) -> None:
    """That of a photograph, of which the model sees a resized copy."""
    encoder = "vz-vitseg_tiny_patch16_128" if name in ("vitseg", "eomt") else "resnet18"
    activation = "sigmoid" if classes == 1 else None
    model = smp.create_model(name, encoder, None, classes=classes, activation=activation).eval()
    image = torch.rand(2, 3, 64, 96)
    predicted = predict_labels(model, image, size)
    with torch.inference_mode():
        logits = F.interpolate(model(image), size=size, mode="bilinear")
    expected = logits.argmax(1) if classes > 1 else (logits[:, 0] > 0.5).long()
    assert predicted.shape == (2, *size)
    # A head that upsamples is resampled once instead of twice, and some before their activation.
    assert (predicted == expected).float().mean() > (0.9 if "former" in name or classes == 1 else 0.999)


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


class Wrapper(nn.Module):
    """Somebody's module around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


# Models of one class with a given activation.
BINARY: dict[str, Callable[..., nn.Module]] = {
    "vitseg": lambda **kwargs: smp.VitSeg(ENCODERS["vitseg"], classes=1, **kwargs),
    "eomt": lambda **kwargs: smp.Eomt("vz-vit_tiny_patch16_224", num_queries=2, **kwargs),
    "dpt": lambda **kwargs: smp.DPT("tu-vit_tiny_patch16_224", decoder_fusion_channels=16, **kwargs),
    "wrapped": lambda **kwargs: Wrapper(smp.FPN("resnet18", **kwargs)),
    "parallel": lambda **kwargs: nn.DataParallel(smp.FPN("resnet18", **kwargs)),
}


@pytest.mark.parametrize("name", BINARY)
def test_one_class_behind_an_activation(name: str) -> None:
    plain, *others = (
        BINARY[name](encoder_weights=None, activation=activation).eval()
        for activation in (None, "sigmoid", "tanh")
    )
    image = torch.randn(1, 3, 224, 224) if name == "dpt" else torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        last = [parameter for key, parameter in plain.named_parameters() if "segmentation_head" in key]
        if last:
            last[-1] -= plain(image).median()  # so that half of the labels are 1
        logits = plain(image)[:, 0]
    assert 0.01 < (logits > 0).float().mean() < 0.99
    for model in others:
        model.load_state_dict(plain.state_dict())
        assert (predict_labels(model, image) == (logits > 0)).float().mean() > 0.999


HEADS: dict[str, Callable[[], list[nn.Module]]] = {
    "two convolutions": lambda: [nn.Conv2d(128, 16, 1), nn.ReLU(), nn.Conv2d(16, 11, 1), up(4)],
    "dropout": lambda: [nn.Dropout(), nn.Conv2d(128, 11, 1), up(4)],
    "same": lambda: [nn.Conv2d(128, 11, 3, padding="same"), up(4)],
    "reflected": lambda: [nn.Conv2d(128, 11, 3, padding=1, padding_mode="reflect"), up(4)],
    "dilated": lambda: [nn.Conv2d(128, 11, 3, padding=2, dilation=2), up(4)],
    "strided": lambda: [nn.Conv2d(128, 11, 3, padding=1, stride=2), up(8)],
    "to a size": lambda: [nn.Conv2d(128, 11, 1), nn.Upsample((128, 96), mode="bilinear")],
    "upsampled first": lambda: [up(4), nn.Conv2d(128, 11, 3, padding=1)],
}


def up(scale: int) -> nn.Module:
    return nn.Upsample(scale_factor=scale, mode="bilinear")


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_ones_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "_STRIP_ELEMENTS", 11 * 96 * 2 * 5)
    model = smp.FPN("resnet18", encoder_weights=None)
    for activation in (Activation(None), nn.Softmax(dim=1)):
        model.segmentation_head = nn.Sequential(*HEADS[name](), activation).eval()
        assert_same_labels(model, torch.rand(2, 3, 128, 96))


def test_hooks_on_the_head_are_respected() -> None:
    model = smp.FPN("resnet18", encoder_weights=None, classes=11)
    model.segmentation_head.register_forward_hook(lambda module, inputs, output: -output)
    assert_same_labels(model, torch.rand(1, 3, 64, 64))


def test_labels_of_a_quarter() -> None:
    model = smp.FusedSegformer("resnet18", encoder_weights=None, classes=11, upsampling=1).eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(predict_labels(model, image), model(image).argmax(1))


@pytest.mark.parametrize("first", [0, 8])
def test_nan_is_as_in_arg_max(first: int) -> None:
    model = smp.FPN("resnet18", encoder_weights=None, classes=11).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        model.segmentation_head[0].bias[first:] = torch.nan
        assert torch.equal(predict_labels(model, image), model(image).argmax(1))


@pytest.mark.parametrize("classes", [1, 11])
def test_hugging_face(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(labels_module, "_STRIP_ELEMENTS", classes * 70 * 2 * 5)
    config = transformers.SegformerConfig(num_labels=classes, depths=[1] * 4)
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    image = torch.randn(2, 3, 98, 70)  # not four times the logits' size
    with torch.inference_mode():
        logits = F.interpolate(model(image).logits, image.shape[2:], mode="bilinear")
    expected = logits.argmax(1) if classes > 1 else logits[:, 0] > 0
    predicted = predict_labels(model, image)
    assert predicted.dtype == torch.int64 and predicted.shape == expected.shape
    assert (predicted == expected).float().mean() > 0.999


def test_any_other_module() -> None:
    assert_same_labels(nn.Conv2d(3, 6, 3, padding=1), torch.rand(1, 3, 20, 30))
    with pytest.raises(ValueError, match=r"Flatten should give logits .* gives \(1, 12\)"):
        predict_labels(nn.Flatten(), torch.rand(1, 3, 2, 2))


def test_the_whole_logits_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "_STRIP_ELEMENTS", 150 * 128 * 8)
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
