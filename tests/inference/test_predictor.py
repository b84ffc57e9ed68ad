"""`Predictor` on each kind of image, against the model run by hand."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vitseg_zoo import Predictor, save_model
from vitseg_zoo.weights.catalog import get_entry

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class PerPixel(nn.Module):
    """A model whose logits depend on a pixel alone, so that resizing is all that can be wrong."""

    def __init__(self, classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, classes, 1)
        self.seen: list[torch.Size] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.shape)
        return self.conv(x)


@pytest.fixture
def image() -> np.ndarray:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return np.asarray(small.resize((70, 50), Image.Resampling.BICUBIC))


def _normalized(image: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_every_kind_of_image_is_the_same(image, tmp_path):
    Image.fromarray(image).save(tmp_path / "cat.png")
    predictor = Predictor(PerPixel(), "cpu", metadata={"mean": MEAN, "std": STD}, tile=32)
    with torch.no_grad():
        expected = predictor.model(_normalized(image)).argmax(1)[0].numpy()
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
    kinds = [image, image / 255, Image.fromarray(image), tmp_path / "cat.png", str(tmp_path / "cat.png")]
    for kind in [*kinds, tensor, tensor / 255]:
        assert (predictor(kind).labels == expected).mean() > 0.999
    for many in [kinds, np.stack([image, image]), torch.stack([tensor, tensor]), (tensor, image)]:
        assert all((result.labels == expected).mean() > 0.999 for result in predictor(many))
    assert predictor([]) == []


@pytest.mark.parametrize(
    "options, seen",
    [
        ({"metadata": {"input_size": (64, 96)}}, (64, 96)),
        ({"metadata": {"input_size": (64, 96), "fit": "shorter_side"}}, (64, 96)),  # of 50 x 70: 64 x 89.6
        ({"metadata": {"input_size": (64, 96)}, "fit": "whole"}, (64, 96)),
        ({}, (64, 96)),
        ({"metadata": {"input_size": (128, 128), "fit": "shorter_side"}}, (128, 192)),
        ({"metadata": {"input_size": (128, 128)}, "tile": 32}, (32, 32)),
        ({"metadata": {"input_size": (32, 64), "fit": "tiles"}}, (32, 64)),
        ({"metadata": {"input_size": (256, 256), "fit": "tiles"}}, (64, 96)),  # no larger than need be
    ],
)
def test_size_that_the_model_sees(options, seen, image):
    predictor = Predictor(PerPixel(), "cpu", **options)
    assert predictor(image).labels.shape == (50, 70)
    assert {tuple(shape[2:]) for shape in predictor.model.seen} == {seen}
    assert predictor.describe()


@pytest.mark.parametrize("options", [{"tile": 32}, {}, {"metadata": {"input_size": (64, 64)}}])
def test_probabilities_and_confidence(options, image):
    predictor = Predictor(PerPixel(), "cpu", **options)
    result = predictor(image, probabilities=True, confidence=True)
    assert result.probabilities.shape == (3, 50, 70) and result.probabilities.dtype == np.float32
    np.testing.assert_allclose(result.probabilities.sum(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(result.probabilities.argmax(0), result.labels)
    np.testing.assert_array_equal(result.probabilities.max(0), result.confidence)
    assert (predictor(image).labels == result.labels).mean() > 0.99
    assert predictor(image).probabilities is None
    assert predictor(image, confidence=True).probabilities is None


@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("options", [{"tile": 32}, {}])
def test_one_class_is_there_or_not(options, activation, image):
    torch.manual_seed(0)
    model = smp.Unet("tu-test_resnet", encoder_weights=None, classes=1, activation=activation)
    with torch.no_grad():
        bare = Predictor(model, "cpu", **options)(image, probabilities=True, confidence=True)
    np.testing.assert_array_equal(bare.labels, bare.probabilities[0] > 0.5)
    np.testing.assert_allclose(bare.confidence, np.maximum(bare.probabilities[0], 1 - bare.probabilities[0]))
    assert 0 < Predictor(model, "cpu", **options)(image).labels.mean() < 1


def test_activation_does_not_change_tiles(image):
    results = []
    for activation in (None, "softmax2d"):
        torch.manual_seed(0)
        model = smp.Unet("tu-test_resnet", encoder_weights=None, classes=3, activation=activation)
        results.append(Predictor(model, "cpu", tile=32)(image, probabilities=True).probabilities)
    np.testing.assert_allclose(*results, atol=1e-5)


def test_images_of_one_size_share_a_batch(image):
    predictor = Predictor(PerPixel(), "cpu", batch_size=2)
    alone = Predictor(PerPixel(), "cpu")
    images = [image, image[::-1], image[:, ::-1], image[:20]]
    for result, one in zip(predictor(images), images, strict=True):
        np.testing.assert_array_equal(result.labels, alone(one).labels)
    assert [shape[0] for shape in predictor.model.seen] == [2, 1, 1]


def test_rows_are_those_of_the_image_and_go_on(image):
    predictor = Predictor(PerPixel(), "cpu", tile=32)
    whole = predictor(image).labels
    strips = list(predictor.label_rows(lambda top, bottom: image[top:bottom], (50, 70)))
    np.testing.assert_array_equal(np.concatenate(strips), whole)
    rest = predictor.label_rows(lambda top, bottom: image[top:bottom], (50, 70), len(strips[0]))
    np.testing.assert_array_equal(np.concatenate(list(rest)), whole[len(strips[0]) :])


def test_hugging_face_logits_of_a_quarter(image):
    class Output(dict):
        logits: torch.Tensor

    class Quarter(PerPixel):
        def forward(self, x):
            output = Output()
            output.logits = F.avg_pool2d(super().forward(x), 4)
            return output

    result = Predictor(Quarter(), "cpu", tile=32)(image, confidence=True)
    assert result.labels.shape == result.confidence.shape == (50, 70)


def test_metadata_of_a_file_and_of_a_pretrained_model(image, tmp_path):
    torch.manual_seed(0)
    model = smp.create_model("unet", "tu-test_resnet", encoder_weights=None, classes=3)
    about = {"mean": MEAN, "std": STD, "input_size": (64, 64), "fit": "tiles"}
    path = save_model(model, tmp_path / "model.safetensors", **about)
    predictor = Predictor(path, "cpu")
    assert predictor.fit == "tiles" and predictor.size == (64, 64)
    model.pretrained_cfg = about
    np.testing.assert_array_equal(Predictor(model, "cpu")(image).labels, predictor(image).labels)


def test_many_classes_and_channels(image):
    model = PerPixel(300, 5)
    nn.init.zeros_(model.conv.weight)
    with torch.no_grad():
        model.conv.bias[:] = torch.arange(300)
    model.segmentation_head = nn.Identity()
    model.config = {"classes": 300, "in_channels": 5}
    labels = Predictor(model, "cpu")(np.zeros((20, 30, 5), np.uint8)).labels
    assert labels.dtype == np.uint16 and (labels == 299).all()
    with pytest.raises(ValueError, match="the image has 3 channels, where 5 are wanted"):
        Predictor(model, "cpu")(Image.fromarray(image))


def test_cityscapes_and_ade20k_predict_as_they_were_measured():
    assert get_entry("segformer_b0.nv_cityscapes_1024").fit == "tiles"
    assert get_entry("segformer_b0.nv_ade20k_512").fit == "shorter_side"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fit": "crop"}, "fit should be one of squeeze, shorter_side, tiles, whole, got 'crop'"),
        ({"tile": 100}, "tile should be a multiple of 32 pixels, got 100"),
        ({"tile": 64, "overlap": 1.0}, r"overlap should be in range \[0, 1\), got 1.0"),
        ({"tile": 64, "fit": "squeeze"}, "tile goes with fit='tiles'"),
        ({"fit": "tiles"}, "no input_size for tiles"),
        ({"tta": ["flips", "turns"]}, "tta should be of flips, scales, got turns"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Predictor(PerPixel(), "cpu", **options)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (np.zeros((8, 8, 4), np.uint8), r"should be \(H, W, C\) of 3 channels, got \(8, 8, 4\)"),
        (torch.zeros(8, 8, 3), r"should be \(C, H, W\) of 3 channels, got \(8, 8, 3\)"),
        (np.zeros((8, 8, 3), np.int64), "whole numbers of 8 or 16 bits without sign, or floats, got int64"),
    ],
)
def test_wrong_images(wrong, message):
    with pytest.raises(ValueError, match=message):
        Predictor(PerPixel(), "cpu")(wrong)


def test_resized_as_for_a_training():
    from vitseg_zoo.data.transforms import resize
    from vitseg_zoo.inference.predictor import _resized

    for channels, kind in ((3, np.uint8), (1, np.uint16), (8, np.uint8), (5, np.float32)):
        image = (np.random.default_rng(0).random((50, 71, channels)) * 200).astype(kind)
        expected = resize((32, 64))(image=image)["image"]
        np.testing.assert_array_equal(_resized(image, (32, 64)).reshape(expected.shape), expected)


@pytest.mark.parametrize("options", [{"tile": 32, "overlap": 0.5}, {"metadata": {"input_size": (64, 64)}}])
def test_mirrored_copies_make_a_prediction_symmetric(options, image):
    model = smp.Unet("tu-test_resnet", encoder_weights=None, classes=3)
    plain, averaged = (Predictor(model, "cpu", tta=tta, **options) for tta in ((), ("flips",)))
    size = (64, 64)  # one tile, or whole tiles from either side
    image = np.asarray(Image.fromarray(image).resize(size))
    mirrored = np.ascontiguousarray(image[:, ::-1])
    one, other = (averaged(x, probabilities=True).probabilities for x in (image, mirrored))
    np.testing.assert_allclose(one, other[:, :, ::-1], atol=1e-5)
    one, other = (plain(x, probabilities=True).probabilities for x in (image, mirrored))
    assert np.abs(one - other[:, :, ::-1]).max() > 1e-3


def test_convolutions_of_smp_run_channels_last(image):
    model = smp.Unet("tu-test_resnet", encoder_weights=None, classes=3)
    expected = Predictor(nn.Sequential(model), "cpu")(image, probabilities=True).probabilities
    seen = []
    model.encoder.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    result = Predictor(model, "cpu")(image, probabilities=True).probabilities
    assert seen == [True]
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_gpu_gets_bytes_from_pinned_memory_and_normalizes_them(monkeypatch):
    predictor = Predictor(PerPixel(), "cpu", metadata={"mean": MEAN, "std": STD})
    pinned: list[torch.dtype] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x.dtype) or x)
    with FakeTensorMode(allow_non_fake_inputs=True):  # which knows no pinned memory
        predictor.device = torch.device("cuda")
        predictor._mean, predictor._std = predictor._mean.to("cuda"), predictor._std.to("cuda")
        pixels = predictor._to_pixels(np.zeros((2, 32, 64, 3), np.uint8))
    assert pinned == [torch.uint8]
    assert (pixels.device.type, pixels.dtype, pixels.shape) == ("cuda", torch.float32, (2, 3, 32, 64))
