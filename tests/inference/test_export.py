"""Exported files: compared with PyTorch before they get their names, and run by the same Predictor."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import tiny_vits
import torch
from torch import nn
from warm_python import WarmPython

from vitseg_zoo import Predictor, cli, save_model
from vitseg_zoo.inference import formats
from vitseg_zoo.inference.export import ExportReport, export_model
from vitseg_zoo.inference.exported import load_exported

METADATA = {
    "class_names": ["road", "grass", "sky"],
    "palette": [[0, 0, 0], [1, 2, 3], [4, 5, 6]],
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
    "input_size": [96, 96],
    "license": "CC0-1.0",
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return smp.create_model("vitseg", "vz-tiny_vit", None, classes=3, encoder_blocks=1)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Smooth ones: of noise, labels between pixels are anything."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (2, 3, 4, 3), np.uint8)
    return [np.kron(image, np.ones((40, 40, 1), np.uint8)) for image in coarse]  # (120, 160, 3)


@pytest.fixture(scope="module")
def exported(
    model: nn.Module, images: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> ExportReport:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return export_model(model, path, METADATA, images=images)


def test_report(exported: ExportReport) -> None:
    assert [agreement.what for agreement in exported.agreements] == [
        *("1 x 192 x 128", "3 x 160 x 160", "1 x 224 x 256", "2 given images")
    ]
    for agreement in exported.agreements:
        assert agreement.labels > 0.999
        assert 0 < agreement.difference < 1e-4
    assert "labels agree on 100.000% of the pixels, logits differ by at most" in str(exported.agreements[0])


def test_any_size_in_onnx_runtime(exported: ExportReport, model: nn.Module) -> None:
    session = onnxruntime.InferenceSession(exported.path)
    for shape in [(1, 3, 64, 96), (4, 3, 128, 320)]:
        noise = torch.rand(shape)
        with torch.no_grad():
            expected = model.eval()(noise)
        np.testing.assert_allclose(
            session.run(None, {"images": noise.numpy()})[0], expected, atol=1e-4, rtol=1e-4
        )


def test_metadata_are_inside(exported: ExportReport) -> None:
    session = onnxruntime.InferenceSession(exported.path)
    said = json.loads(session.get_modelmeta().custom_metadata_map["vitseg_zoo"])
    assert {key: said[key] for key in METADATA} == METADATA
    assert said["architecture"] == "vitseg"
    _, known = load_exported(exported.path)
    assert known["arguments"] == {"in_channels": 3, "classes": 3}


@pytest.mark.parametrize("options", [{}, {"tile": 64}], ids=["squeezed", "tiles"])
def test_the_same_predictor(
    exported: ExportReport, model: nn.Module, images: list[np.ndarray], options: dict
) -> None:
    expected = Predictor(model, "cpu", metadata=METADATA, **options)(images[0], confidence=True)
    found = Predictor(exported.path, "cpu", **options)(images[0], confidence=True)
    assert (found.labels == expected.labels).mean() > 0.999
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4)


def test_predict_from_the_command_line(
    exported: ExportReport, images: list[np.ndarray], tmp_path: Path
) -> None:
    from PIL import Image

    Image.fromarray(images[0]).save(tmp_path / "photo.png")
    arguments = [str(tmp_path / "photo.png"), "--weights", str(exported.path), "--out", str(tmp_path)]
    assert cli.main(["predict", *arguments]) == 0
    mask = np.asarray(Image.open(tmp_path / "photo_mask.png"))
    assert (mask == Predictor(exported.path, "cpu")(images[0]).labels).all()


def _outlives_signals(path: Path) -> None:
    """A model that another thread drops, as the garbage collector may, and then a child that ends."""
    process = WarmPython(
        """
        import faulthandler, signal, subprocess, sys, threading
        from pathlib import Path
        from vitseg_zoo.inference.exported import open_openvino
        faulthandler.enable()
        held = [open_openvino(Path(sys.argv[1]))]
        dropped = threading.Thread(target=held.clear)
        dropped.start()
        dropped.join()
        signal.signal(signal.SIGCHLD, lambda *_: print("a child ended"))
        subprocess.run(["true"])
        """,
        str(path),
        environment=dict(os.environ),
    )
    assert process.communicate()[0] == "a child ended\n"


def test_openvino_with_everything_inside(model: nn.Module, images: list[np.ndarray], tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    report = export_model(model, path, METADATA, input="uint8_nhwc", labels=True, images=images)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert report.agreements[0].difference is None
    _outlives_signals(path)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    photo = images[0][None, :96, :128]
    labels = compiled(photo)[0]
    pixels = torch.from_numpy(photo).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(METADATA[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = model.eval()((pixels - mean) / std).argmax(1)
    assert labels.dtype == np.uint8
    assert (labels == expected.numpy()).mean() > 0.999
    size = {"input_size": (96, 96)}
    found = Predictor(path, "cpu", metadata=size)(images[0][:96, :96]).labels
    expected = Predictor(model, "cpu", metadata=METADATA)(images[0][:96, :96]).labels
    assert (found == expected).mean() > 0.999
    with pytest.raises(ValueError, match="tiles blend logits"):
        Predictor(path, "cpu", tile=64)(images[0])


def test_fixed_sizes_and_eight_bits(model: nn.Module, images: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    report = export_model(model, path, METADATA, size=(64, 96), batch=2, images=images, quantize="int8")
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert "DequantizeLinear" in kinds
    assert report.quantized.megabytes[1] < report.quantized.megabytes[0] / 2
    assert report.quantized.agreements[0].difference > report.agreements[0].difference  # it is another file
    predictor = Predictor(path, "cpu")
    assert predictor.size == (64, 96)  # not METADATA's
    assert predictor.metadata["class_names"] == METADATA["class_names"]
    noise = torch.rand(3, 3, 64, 96)  # one and a half batches
    with torch.no_grad():
        expected = model.eval()(noise).argmax(1)
    assert (predictor.model(noise).argmax(1) == expected).float().mean() > 0.9
    with pytest.raises(ValueError, match="takes images of 64 x 96 only, got 96 x 96"):
        predictor.model(torch.rand(1, 3, 96, 96))


def test_eight_bits_in_openvino(model: nn.Module, images: list[np.ndarray], tmp_path: Path) -> None:
    openvino, _ = pytest.importorskip("openvino"), pytest.importorskip("nncf")
    path = tmp_path / "model.xml"
    report = export_model(
        model, path, METADATA, size=(96, 96), input="uint8_nchw", images=images, quantize="int8"
    )
    assert sorted(file.name for file in tmp_path.iterdir() if "LICENSE" not in file.name) == [
        *("model.bin", "model.xml")
    ]
    kinds = {node.get_type_name() for node in openvino.Core().read_model(path).get_ops()}
    assert "FakeQuantize" in kinds
    assert report.quantized.megabytes[1] < report.quantized.megabytes[0] / 2
    assert report.quantized.agreements[-1].what == "2 given images"
    assert report.quantized.agreements[-1].difference > report.agreements[-1].difference
    found = Predictor(path, "cpu")
    assert found.metadata["class_names"] == METADATA["class_names"] and found.size == (96, 96)
    expected = Predictor(model, "cpu", metadata=METADATA)
    # Of random weights, and by the processor: 0.966 on one without VNNI, above 0.97 on another.
    agreement = np.mean([(found(image).labels == expected(image).labels).mean() for image in images])
    assert agreement > 0.95
    assert agreement == pytest.approx(report.quantized.agreements[-1].labels, abs=0.01)


def test_what_eight_bits_cannot_be_dynamic_is_offered_fixed(
    model: nn.Module, images: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SegFormer in OpenVINO, which runs at the size that it was calibrated on, and fails at another."""

    def fail(*args: object) -> None:
        raise RuntimeError("Eltwise shape infer\nmore")

    monkeypatch.setitem(formats.QUANTIZERS, ".onnx", fail)
    with pytest.raises(ValueError, match=r"cannot be made int8 in \.onnx so \(RuntimeError: Eltwise.*--size"):
        export_model(model, tmp_path / "model.onnx", METADATA, images=images, quantize="int8")
    assert not list(tmp_path.iterdir())


def test_torch_export_for_any_size(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    assert export_model(model, path, METADATA).agreements[0].labels == 1
    said = {"vitseg_zoo": ""}
    program = torch.export.load(path, extra_files=said)
    assert json.loads(said["vitseg_zoo"])["class_names"] == METADATA["class_names"]
    noise = torch.rand(1, 3, 320, 64)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(noise), model.eval()(noise))
    with pytest.raises(ValueError, match="can run code from a file"):
        Predictor(path)


def test_a_file_that_is_another_gets_no_name(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another(deployed: nn.Module, *args: object) -> None:
        deployed.model.segmentation_head[0].bias.data[:256] += 1
        formats._write_pt2(deployed, *args)
        deployed.model.segmentation_head[0].bias.data[:256] -= 1

    monkeypatch.setitem(formats.WRITERS, ".pt2", write_another)
    with pytest.raises(ValueError, match="the file is not what the model is, on 1 x 64 x 64"):
        export_model(model, tmp_path / "model.pt2", METADATA, size=(64, 64), batch=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("encoder", "size"), [("tiny_dinov3", None), ("tiny_relpos", (96, 64)), ("tiny_sam", (96, 64))]
)
def test_vits_of_other_kinds_in_onnx(encoder: str, size: tuple[int, int] | None, tmp_path: Path) -> None:
    """Rotary embeddings at any size; relative positions, and SAM's windows and attention, at one."""
    other = smp.create_model("vitseg", f"vz-{encoder}", None, classes=2, encoder_blocks=1)
    for agreement in export_model(other, tmp_path / "model.onnx", {}, size=size).agreements:
        assert agreement.labels > 0.999
        assert agreement.difference < 1e-4


def test_a_pyramid_in_openvino_at_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny_vits.SIZES, "depth", 1)  # as tracing all blocks and levels takes a minute
    linknet = smp.create_model("linknet", "vz-tiny_vit", None, classes=3, encoder_depth=3).eval()
    report = export_model(linknet, tmp_path / "model.xml", {"mean": [0.5] * 3, "std": [0.25] * 3})
    assert all(agreement.labels > 0.999 for agreement in report.agreements)


def test_unpooling_in_onnx_at_any_size(tmp_path: Path) -> None:
    segnet = smp.create_model("segnetdsc", encoder_weights=None, classes=3).eval()
    report = export_model(segnet, tmp_path / "model.onnx", {"mean": [0.5] * 3, "std": [0.25] * 3})
    assert all(agreement.labels > 0.999 for agreement in report.agreements)


def test_the_exporter_s_last_word_is_the_reason(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*args) -> None:
        try:
            raise KeyError("no function for aten.unheard_of")
        except KeyError as error:
            raise RuntimeError("\x1b[96mThis is step 3/3\x1b[0m") from error

    monkeypatch.setitem(formats.WRITERS, ".onnx", write)
    with pytest.raises(
        ValueError, match=r"cannot be exported to .onnx so .KeyError: 'no function for aten.unheard"
    ):
        export_model(model, tmp_path / "model.onnx")


def test_what_cannot_be_dynamic_is_offered_fixed(tmp_path: Path) -> None:
    beit = smp.create_model("vitseg", "vz-tiny_beit", None, classes=2).eval()
    with pytest.raises(ValueError, match=r"give it one size instead: size=\(512, 512\), or --size 512 512"):
        export_model(beit, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
    assert export_model(beit, tmp_path / "model.pt2", size=(96, 64)).agreements[0].labels == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.engine", {}, "ends in .onnx, .pt2, .xml"),
        ("model.onnx", {"input": "uint8"}, "input should be one of normalized, uint8_nchw, uint8_nhwc"),
        ("model.onnx", {"quantize": "int8"}, "needs images to calibrate on"),
        ("model.pt2", {"quantize": "int8"}, "'int8', for .onnx or .xml"),
        ("model.onnx", {"batch": 0}, "batch should be at least 1"),
    ],
)
def test_what_is_refused(model: nn.Module, name: str, options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_model(model, tmp_path / name, **options)


def test_foreign_and_damaged_files(exported: ExportReport, tmp_path: Path) -> None:
    file = onnx.load(exported.path)
    del file.metadata_props[:]
    onnx.save(file, tmp_path / "foreign.onnx")
    assert Predictor(tmp_path / "foreign.onnx", "cpu").fit == "whole"
    for text, message in [("{", "no JSON"), ("[]", "do not say"), ('{"mean": [1, 2]}', "mean should be")]:
        onnx.helper.set_model_props(file, {"vitseg_zoo": text})
        onnx.save(file, tmp_path / "damaged.onnx")
        with pytest.raises(ValueError, match=message):
            load_exported(tmp_path / "damaged.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ValueError, match=r"empty\.onnx cannot be loaded"):
        load_exported(tmp_path / "empty.onnx")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_exported(tmp_path / "absent.xml")


def test_one_class_behind_a_sigmoid_gives_logits(tmp_path: Path) -> None:
    model = smp.Unet(
        "resnet18", encoder_depth=3, decoder_channels=(8, 8, 8), encoder_weights=None, activation="sigmoid"
    ).eval()
    export_model(model, tmp_path / "model.onnx", {}, size=(32, 32), batch=1)
    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    found = Predictor(tmp_path / "model.onnx", "cpu")(photo, probabilities=True)
    expected = Predictor(model, "cpu")(photo, probabilities=True)
    assert 0 < expected.labels.mean() < 1
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    assert isinstance(model.segmentation_head[2].activation, nn.Sigmoid)  # the user's model is as it was


def test_command_line(model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = save_model(model, tmp_path / "model.safetensors", **METADATA)
    out = tmp_path / "model.pt2"
    assert cli.main(["export", str(weights), str(out), "--size", "64", "64", "--batch", "1", "--labels"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "1 x 64 x 64: labels agree on 100.000% of the pixels"
    assert said[-1] == f"{out}: 1 images of 64 x 64, normalized"
