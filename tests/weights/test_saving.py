"""Files and folders that say what they are; reading them back gives the same numbers bit by bit."""

import functools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hub_server import HubServer
from huggingface_hub import ModelCard
from safetensors import safe_open
from torch import nn
from warm_python import WarmPython

import vitseg_zoo
from vitseg_zoo.weights.entry import NVIDIA_LICENSE

METADATA = {
    "class_names": ["pet", "rest"],
    "palette": [[255, 0, 0], [0, 0, 0]],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.2],
    "input_size": [64, 96],
    "license": "apache-2.0",
    "training_data": "drawn animals",
    "metric": "mIoU 91.0 %",
    "limits": "Drawings only.",
}


def build(architecture="vitseg", encoder="vz-test_vit", **arguments):
    model = smp.create_model(architecture, encoder, None, classes=2, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    return model.eval()


def logits(model, image):
    with torch.inference_mode():
        return model(image)


@pytest.mark.parametrize(
    ("architecture", "encoder", "arguments"),
    [
        ("vitseg", "vz-vitseg_tiny_patch16_128", {"decoder_head": "mlp", "img_size": 64}),
        ("segmenter", "vz-test_vit", {"decoder_depth": 1}),
        ("fusedsegformer", "vz-mit_b0", {"decoder_segmentation_channels": 64}),
        ("unet", "vz-mit_b0", {"decoder_attention_type": "scse"}),
        ("fpn", "resnet18", {}),
    ],
)
def test_file_is_enough(architecture, encoder, arguments, tmp_path):
    model = build(architecture, encoder, **arguments).to(memory_format=torch.channels_last)
    path = vitseg_zoo.save_model(model, tmp_path / "sub" / "model.safetensors", **METADATA)
    assert os.listdir(path.parent) == ["model.safetensors"]
    again, metadata = vitseg_zoo.load_model(path)
    model.to(memory_format=torch.contiguous_format)
    image = torch.rand(1, 3, 64, 64)
    assert type(again) is type(model) and not again.training
    assert torch.equal(logits(again, image), logits(model, image))
    assert {key: metadata[key] for key in METADATA} == METADATA
    assert metadata["vitseg_zoo_version"] == vitseg_zoo.__version__
    # Saved again, it says the same.
    vitseg_zoo.save_model(again, path, **{key: metadata[key] for key in METADATA})
    assert vitseg_zoo.load_model(path)[1] == metadata


def test_folder(tmp_path):
    model = build()
    vitseg_zoo.save_pretrained(model, tmp_path / "pets", **METADATA)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(logits(vitseg_zoo.load_model(tmp_path / "pets")[0], image), logits(model, image))
    assert json.loads((tmp_path / "pets" / "config.json").read_text())["_model_class"] == "VitSeg"


@pytest.mark.parametrize("method", [False, True], ids=["function", "SMP's own method"])
def test_card_says_all_and_its_snippet_runs(method, tmp_path, monkeypatch):
    model = build()
    monkeypatch.chdir(tmp_path.parent)  # the card names the folder, and not where it lies
    if method:
        model.save_pretrained(tmp_path, model_card_kwargs=METADATA)
    else:
        vitseg_zoo.save_pretrained(model, tmp_path, **METADATA)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "image-segmentation"
    for part in ("0. pet", "1. rest", "mIoU 91.0 %", "drawn animals", "Drawings only."):
        assert part in card.text
    (snippet,) = re.findall(r"```python\n(# pip.*?)```", card.text, re.DOTALL)
    namespace = {}
    exec(snippet, namespace)
    assert namespace["labels"].shape == (1, 64, 96)


def test_card_of_another_license(tmp_path):
    vitseg_zoo.save_pretrained(build(), tmp_path, license="Research only", commercial_use=False)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "Research only")
    assert "Commercial use of the weights is not allowed" in card.text


@pytest.mark.slow
def test_saved_and_pushed_and_read_back_by_smp_alone(tmp_path):
    """Pushed to a server on this machine, by processes that are told of it before they start."""
    with HubServer() as hub:
        environment = {"PATH": os.environ["PATH"], "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_secret"}
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}

        process = WarmPython(
            f"""
            import torch, vitseg_zoo
            import segmentation_models_pytorch as smp
            model = smp.create_model("vitseg", "vz-vitseg_tiny_patch16_128", None, classes=2).eval()
            image = torch.rand(1, 3, 64, 64)
            with torch.inference_mode():
                torch.save((image, model(image)), "expected.pt")
            vitseg_zoo.save_pretrained(model, "folder", **{METADATA})
            print(vitseg_zoo.push_to_hub(model, "pets", **{METADATA}))
            model.push_to_hub("me/rest", model_card_kwargs={METADATA})
            """,
            environment=environment,
            cwd=tmp_path,
        )
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        address = output.strip()
        assert b"smp.from_pretrained('me/rest')" in hub.files.pop("me/rest/README.md").content
        hub.files = {name: file for name, file in hub.files.items() if name.startswith("me/pets/")}
        assert address.startswith(f"{hub.endpoint}/me/pets/commit/")
        assert {name.removeprefix("me/pets/") for name in hub.files} == {
            "README.md",
            "config.json",
            "model.safetensors",
        }
        assert b"smp.from_pretrained('me/pets')" in hub.files["me/pets/README.md"].content
        made = next(headers for _, path, headers in hub.requests if path == "/api/repos/create")
        assert made["authorization"] == "Bearer hf_secret"
        code = """if True:
            import torch
            import segmentation_models_pytorch as smp
            image, expected = torch.load("expected.pt")
            with torch.inference_mode():
                for place in ("folder", "me/pets"):
                    print(place, torch.equal(smp.from_pretrained(place).eval()(image), expected))
        """
        command = [sys.executable, "-c", code]  # which SMP alone is imported in
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "folder True" in done.stdout and "me/pets True" in done.stdout


def test_wrong_metadata(tmp_path):
    with pytest.raises(ValueError, match="class_names has 3 values, but the model has 2 classes"):
        vitseg_zoo.save_model(build(), tmp_path / "a.safetensors", class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="Unknown metadata licences"):
        vitseg_zoo.save_model(build(), tmp_path / "a.safetensors", licences="mit")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("input_size", 64, r"input_size should be \(height, width\) in pixels, got 64"),
        ("input_size", (64, 0), r"input_size should be .* got \[64, 0\]"),
        ("input_size", (64.5, 64), "input_size should be"),
        ("fit", "crop", "fit should be one of squeeze, shorter_side, tiles, whole, got 'crop'"),
        ("mean", 0.5, "mean should be 3 finite numbers, one for each channel .* got 0.5"),
        ("mean", (0.5, 0.5), "mean should be 3 finite numbers"),
        ("std", (0.2, 0.2, 0), "std should be 3 finite numbers above 0, .* got"),
        ("std", (0.2, 0.2, float("nan")), "std should be 3 finite numbers"),
        ("palette", [(0.0, 0.5, 1.0)] * 2, "palette should hold RGB colors of whole numbers from 0 to 255"),
        ("palette", [(0, 0, 256)] * 2, "palette should hold RGB colors"),
        ("palette", [(0, 0, 0, 255)] * 2, "palette should hold RGB colors"),
        ("class_names", "ab", "class_names should be a list, one entry for each class, got 'ab'"),
    ],
)
def test_metadata_that_a_prediction_would_stumble_over(key, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        vitseg_zoo.save_model(build(), tmp_path / "a.safetensors", **{key: value})
    assert not list(tmp_path.iterdir())


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = vitseg_zoo.save_model(build(), tmp_path / "a.safetensors")
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitseg_zoo.weights.saving.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        vitseg_zoo.save_model(build(), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_checkpoint_of_our_training(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    module_type = pytest.importorskip("vitseg_zoo.training.module").SegmentationModule
    module = module_type("unet", "resnet18", None, METADATA["class_names"], METADATA["palette"], [64, 96])
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    model, metadata = vitseg_zoo.load_model(tmp_path / "last.ckpt")
    image = torch.rand(1, 3, 64, 96)
    assert torch.equal(logits(model, image), logits(module.model.eval(), image))
    assert metadata["class_names"] == METADATA["class_names"]
    assert (metadata["mean"], metadata["std"]) == ([0.0], [1.0])  # trained from random weights on [0, 1]
    assert list(metadata["input_size"]) == [64, 96]


def test_metadata_hold_no_code(tmp_path):
    path = vitseg_zoo.save_model(build(), tmp_path / "a.safetensors", **METADATA)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"format", "vitseg_zoo"} and metadata["format"] == "pt"
    described = json.loads(metadata["vitseg_zoo"])  # nothing but JSON
    assert described["architecture"] == "vitseg" and described.keys() == {
        *("architecture", "arguments", "vitseg_zoo_version"),
        *METADATA,
    }
    with pytest.raises(TypeError, match="not JSON serializable"):
        vitseg_zoo.save_model(build(), path, recipe=print)


def test_wrapped_models_are_saved_as_themselves(tmp_path):
    model, image = build(), torch.rand(1, 3, 64, 64)
    for wrapped in (torch.compile(model), nn.DataParallel(model), nn.DataParallel(torch.compile(model))):
        path = vitseg_zoo.save_model(wrapped, tmp_path / "model.safetensors")
        assert torch.equal(logits(vitseg_zoo.load_model(path)[0], image), logits(model, image))
        vitseg_zoo.save_pretrained(wrapped, tmp_path / "folder")
        assert torch.equal(
            logits(smp.from_pretrained(tmp_path / "folder").eval(), image), logits(model, image)
        )


def test_other_models_are_refused(tmp_path):
    with pytest.raises(TypeError, match="A Linear cannot be saved"):
        vitseg_zoo.save_model(nn.Linear(1, 1), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_arrays_and_tensors_as_metadata(tmp_path):
    path = vitseg_zoo.save_model(
        build(),
        tmp_path / "a.safetensors",
        palette=np.array([[255, 0, 0], [0, 0, 0]], np.uint8),
        mean=torch.tensor([0.5, 0.25, 0.125]),
        std=[np.float32(0.5)] * 3,
        input_size=torch.Size([64, 96]),
    )
    metadata = vitseg_zoo.load_model(path)[1]
    assert metadata["palette"] == [[255, 0, 0], [0, 0, 0]] and metadata["mean"] == [0.5, 0.25, 0.125]
    assert metadata["std"] == [0.5, 0.5, 0.5] and metadata["input_size"] == [64, 96]


@pytest.mark.slow
def test_publishing_without_network(tmp_path):
    code = """
        import vitseg_zoo
        import segmentation_models_pytorch as smp
        model = smp.create_model("segmenter", "vz-test_vit", None, classes=2)
        for push in (vitseg_zoo.push_to_hub, type(model).push_to_hub):
            try:
                push(model, "me/pets")
            except ConnectionError as error:
                print(error)
    """
    environment = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_secret"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "*"}  # a port at which nobody answers
    process = WarmPython(code, environment=environment)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    lines = output.strip().splitlines()
    assert len(lines) == 2, lines
    for line in lines:
        assert line.startswith("me/pets was not published: no connection") and "127.0.0.1:9" in line


def changed(model, **arguments):
    """A model whose encoder was changed by hand after it was built."""
    model.encoder.configure(**arguments)
    model.encoder.set_in_channels(4)
    return model.eval()


@pytest.mark.parametrize(
    ("architecture", "encoder", "arguments"),
    [
        ("vitseg", "vz-test_vit", {"img_size": torch.Size([64, 96]), "drop_path_rate": 0.1}),
        ("eomt", "vz-test_vit", {"img_size": 64}),
        ("segmenter", "vz-mit_b0", {"drop_path_rate": 0.2}),
        ("fusedsegformer", "vz-mit_b0", {"drop_path_rate": 0.2}),
        ("unet", "vz-test_vit", {"img_size": 64, "drop_path_rate": 0.1}),
        ("fpn", "vz-mit_b0", {"drop_path_rate": 0.2}),
    ],
)
def test_what_the_encoder_was_configured_with_is_in_the_file(architecture, encoder, arguments, tmp_path):
    model = changed(build(architecture, encoder), **arguments)
    path = vitseg_zoo.save_model(model, tmp_path / "model.safetensors")
    again = vitseg_zoo.load_model(path)[0]
    image = torch.rand(1, 4, 64, 96)
    assert torch.equal(logits(again, image), logits(model, image))
    assert repr(again.encoder.model) == repr(model.encoder.model)  # rates of dropout, too
    vitseg_zoo.save_model(again, path)
    assert torch.equal(logits(vitseg_zoo.load_model(path)[0], image), logits(model, image))


@pytest.mark.parametrize("method", [False, True], ids=["function", "SMP's own method"])
def test_what_the_encoder_was_configured_with_is_in_the_folder(method, tmp_path):
    model = changed(build("segmenter"), img_size=64, drop_path_rate=0.1)
    if method:
        model.save_pretrained(tmp_path)
    else:
        vitseg_zoo.save_pretrained(model, tmp_path)
    image = torch.rand(1, 4, 64, 96)
    for again in (smp.from_pretrained(tmp_path).eval(), vitseg_zoo.load_model(tmp_path)[0]):
        assert torch.equal(logits(again, image), logits(model, image))
        assert repr(again.encoder.model) == repr(model.encoder.model)


def test_what_smp_cannot_build_again_is_refused(tmp_path):
    model = changed(build("unet"), drop_path_rate=0.1)
    vitseg_zoo.save_pretrained(model, tmp_path / "folder")
    image = torch.rand(1, 4, 64, 96)
    for again in (
        smp.from_pretrained(tmp_path / "folder").eval(),
        vitseg_zoo.load_model(tmp_path / "folder")[0],
    ):
        assert torch.equal(logits(again, image), logits(model, image))
    model.encoder.configure(img_size=64)
    with pytest.raises(
        ValueError, match="cannot build a Unet whose encoder was configured with img_size: use"
    ):
        vitseg_zoo.save_pretrained(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_no_file_can_hold_is_refused(tmp_path):
    norm = functools.partial(nn.LayerNorm, eps=1e-3)
    models = [build("fpn", "vz-mit_b0"), build("fusedsegformer", "vz-mit_b0", norm_layer=norm)]
    models[0].encoder.configure(norm_layer=norm)
    for model in (*models, build("vitseg", norm_layer=norm)):
        with pytest.raises(ValueError, match=r"configured with norm_layer=.*which a file cannot hold: save"):
            vitseg_zoo.save_model(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="norm_layer"):
        models[1].save_pretrained(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_a_pretrained_model_of_other_channels(tmp_path):
    for channels in (1, 4):
        model = vitseg_zoo.create_model("segformer_b0.pets", pretrained=True, in_channels=channels).eval()
        assert {len(model.pretrained_cfg[key]) for key in ("mean", "std")} == {channels}
        image = torch.rand(1, channels, 64, 64)
        path = vitseg_zoo.save_model(model, tmp_path / "model.safetensors")
        assert torch.equal(logits(vitseg_zoo.load_model(path)[0], image), logits(model, image))
        model.save_pretrained(tmp_path / "folder")
        assert torch.equal(
            logits(smp.from_pretrained(tmp_path / "folder").eval(), image), logits(model, image)
        )


def test_numbers_beyond_half_precision_are_kept(tmp_path):
    model = build()
    name, weight = next((name, value) for name, value in model.named_parameters() if value.ndim == 4)
    with torch.no_grad():
        weight[0, 0, 0, 0] = 1e6
    path = vitseg_zoo.save_model(model, tmp_path / "a.safetensors", half=True)
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor(name), weight)
        dtypes = [file.get_tensor(key).dtype for key in file.keys()]  # noqa: SIM118
    assert dtypes.count(torch.float32) == 1 and torch.float16 in dtypes
    assert torch.equal(vitseg_zoo.load_model(path)[0].get_parameter(name), weight)


def test_nvidias_license_lies_beside_its_weights(tmp_path):
    model = vitseg_zoo.create_model("segformer_b0.nv_ade20k_512")
    vitseg_zoo.save_model(model, tmp_path / "own.safetensors", license="mit")
    assert [path.name for path in tmp_path.iterdir()] == ["own.safetensors"]
    vitseg_zoo.save_model(model, tmp_path / "b0.safetensors", license=NVIDIA_LICENSE)
    notice = (tmp_path / "b0.LICENSE.txt").read_text()
    assert "https://github.com/NVlabs/SegFormer/blob/master/LICENSE" in notice and "3.1" in notice
    vitseg_zoo.save_pretrained(model, tmp_path / "folder", license=NVIDIA_LICENSE)
    assert (tmp_path / "folder" / "model.LICENSE.txt").read_text() == notice
