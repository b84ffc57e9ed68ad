"""Labels in strips against the arg-max of full logits."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import gpu_counts
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import tiny_vits  # noqa: F401  registers models
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.modules import Activation
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitseg_zoo.inference import predict_labels as labels_module
from vitseg_zoo.inference.predict_labels import predict_labels

ARCHITECTURES = sorted({*smp.MODEL_ARCHITECTURES_MAPPING} - {"dpt", "eomt"})
ENCODERS = {"vitseg": "vz-vitseg_tiny_patch16_128", "segmenter": "vz-vitseg_tiny_patch16_128"}
ENCODERS |= {"segnet": "resnet34", "segnetdsc": "resnet34"}  # SMP's default stands for their own


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


@pytest.mark.parametrize("form", ["on a CPU", "plain"])
def test_the_whole_logits_are_never_made(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "_STRIP_ELEMENTS", 150 * 128 * 8)
    monkeypatch.setattr(labels_module, "_CHUNK_ELEMENTS", 150 * 128 * 8)
    monkeypatch.setattr(labels_module, "runs_eagerly_on_cpu", lambda x: form == "on a CPU")
    largest = 0

    class Sizes(TorchDispatchMode):
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


@pytest.mark.parametrize("name", ["vitseg", "unet", "segformer", "fusedsegformer", "fpn"])
def test_the_plain_form_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of GPUs and of graphs."""
    model = smp.create_model(name, ENCODERS.get(name, "resnet18"), None, classes=11).eval()
    image = torch.rand(2, 3, 64, 96)
    on_cpu = [predict_labels(model, image, size) for size in (None, (41, 130))]
    monkeypatch.setattr(labels_module, "runs_eagerly_on_cpu", lambda x: False)
    monkeypatch.setattr(labels_module, "_CHUNK_ELEMENTS", 2 * 64 * 96 * 3)  # of 11 classes
    assert_same_labels(model, image)
    for size, expected in zip((None, (41, 130)), on_cpu, strict=True):
        assert (predict_labels(model, image, size) == expected).float().mean() > 0.999


@pytest.mark.parametrize("first", [0, 3, 8])
def test_chunks_are_arg_max_with_nan_and_equal_values(first: int, monkeypatch) -> None:
    monkeypatch.setattr(labels_module, "_STRIP_ELEMENTS", 11 * 24 * 4)  # four rows
    low = torch.randint(0, 3, (1, 11, 9, 12)).float()
    low[:, first, 2:5] = torch.nan
    low[:, 6, 4:7] = torch.nan
    chunks = list(labels_module._labels_in_chunks(low, (18, 24), False))
    expected = F.interpolate(low, (18, 24), mode="bilinear").argmax(1)
    assert len(chunks) == 5 and torch.equal(torch.cat(chunks, dim=1), expected)


@pytest.mark.parametrize(
    "model, encoder", [("fusedsegformer", "vz-mit_b0"), ("vitseg", "vz-tiny_vit"), ("fpn", "resnet18")]
)
def test_kernels_and_waits_on_a_gpu(model: str, encoder: str) -> None:
    """At most 40 kernels over the model's own for 150 classes at 512 x 512, and none that waits."""
    network = smp.create_model(model, encoder, encoder_weights=None, classes=150).eval()
    with gpu_counts.fake_gpu(network):
        image = torch.empty(1, 3, 512, 512, device="cuda")
        logits = gpu_counts.count(torch.inference_mode()(network), image)
        for size in (None, (300, 400)):
            labels = gpu_counts.count(lambda image, size=size: predict_labels(network, image, size), image)
            assert labels["kernels"] <= logits["kernels"] + 40 and labels["waits"] == 0


def test_memory_on_a_gpu() -> None:
    """150 classes at 2048 x 2048 take at most 256 MB, of which the logits before are 157, not 2.5 GB."""
    with gpu_counts.fake_gpu(), gpu_counts.PeakMemory() as memory:
        low = torch.empty(1, 150, 512, 512, device="cuda")
        labels = labels_module._upsampled_labels(
            nn.Identity(), labels_module._MapRows(low), (2048, 2048), False, torch.uint8
        )
    assert labels.shape == (1, 2048, 2048)
    assert memory.peak <= 256e6


@pytest.mark.parametrize(
    "image, size, error, message",
    [
        (
            torch.rand(0, 3, 32, 32),
            None,
            ValueError,
            r"image should be .* no side of 0, got \(0, 3, 32, 32\)",
        ),
        (torch.rand(1, 3, 0, 32), None, ValueError, r"got \(1, 3, 0, 32\)"),
        (torch.rand(3, 32, 32), None, ValueError, r"image should be \(B, C, H, W\)"),
        ([[1.0]], None, TypeError, r"image should be a tensor \(B, C, H, W\), got list"),
        (torch.rand(1, 3, 32, 32), (0, 5), ValueError, r"size should be at least 1 x 1, got 0 x 5"),
        (
            torch.rand(1, 3, 32, 32),
            (5.0, 5),
            TypeError,
            r"size should be two whole numbers, .* got \(5.0, 5\)",
        ),
        (torch.rand(1, 3, 32, 32), 64, TypeError, r"size should be two whole numbers, .* got 64"),
        (torch.rand(1, 3, 32, 32), (64,), TypeError, r"size should be two whole numbers, .* got \(64,\)"),
    ],
)
def test_what_is_no_image_or_no_size(image, size, error, message: str) -> None:
    for model in (smp.FPN("resnet18", encoder_weights=None), nn.Conv2d(3, 4, 1)):
        with pytest.raises(error, match=message):
            predict_labels(model, image, size)


def test_size_of_numpy_and_torch() -> None:
    model, image = smp.FPN("resnet18", encoder_weights=None).eval(), torch.rand(1, 3, 32, 32)
    assert predict_labels(model, image, torch.Size((5, 7))).shape == (1, 5, 7)
    assert predict_labels(model, image, np.array([5, 7])).shape == (1, 5, 7)


def test_hooks_on_the_model_see_its_output() -> None:
    model = smp.FPN("resnet18", encoder_weights=None, classes=11)
    model.register_forward_hook(lambda module, inputs, output: -output)
    assert_same_labels(model, torch.rand(1, 3, 64, 64))
    model = smp.FPN("resnet18", encoder_weights=None, classes=11)
    seen = []
    for part in (model.encoder, model.decoder):
        part.register_forward_hook(lambda module, inputs, output: seen.append(type(module).__name__))
    predict_labels(model, torch.rand(1, 3, 64, 64))
    assert seen == [type(model.encoder).__name__, "FPNDecoder"]


SERVED: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: smp.Unet("resnet18", encoder_weights=None, classes=3),
    "fusedsegformer": lambda: smp.FusedSegformer("vz-mit_b0", encoder_weights=None, classes=19),
    "vitseg": lambda: smp.VitSeg(ENCODERS["vitseg"], encoder_weights=None, classes=9),
    "beit": lambda: smp.VitSeg("vz-tiny_beit", encoder_weights=None, classes=9),
}


@pytest.mark.parametrize("name", SERVED)
def test_a_served_model_in_a_thread_pool(name: str) -> None:
    """Requests of several sizes, for labels and for logits, at once: as one after the other."""
    torch.manual_seed(0)
    model = SERVED[name]().eval()
    images = [torch.rand(1, 3, *size) for size in ((64, 96), (32, 64), (96, 32), (64, 64))]

    def serve(request: int) -> torch.Tensor:
        image = images[request % len(images)]
        if request % 3 == 0:
            return predict_labels(model, image)
        if request % 3 == 1:
            return predict_labels(model, image, (40, 50))
        with torch.inference_mode():
            return model(image)

    expected = [serve(request) for request in range(12)]
    with ThreadPoolExecutor(16) as pool:
        for request, answer in enumerate(pool.map(serve, range(60))):
            torch.testing.assert_close(answer, expected[request % 12], rtol=1e-4, atol=1e-4)


def test_gradients_after_labels() -> None:
    """What an encoder keeps from one call to the next can be differentiated."""
    model = smp.VitSeg("vz-tiny_beit", encoder_weights=None, classes=3).eval()
    image = torch.rand(1, 3, 48, 96)
    predict_labels(model, image)
    model(image).sum().backward()
    tables = [value for key, value in model.named_parameters() if "relative_position_bias_table" in key]
    assert tables and all(table.grad is not None and table.grad.abs().sum() > 0 for table in tables)
