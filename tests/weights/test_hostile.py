"""What a file says of its model is checked before anything is built, opened or shown."""

import json

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import vitseg_zoo
from vitseg_zoo.weights.card import make_model_card
from vitseg_zoo.weights.catalog import entry_of_file
from vitseg_zoo.weights.saving import convert_file

WEIGHTS = {"encoder.conv1.weight": torch.zeros(4)}
UNET = {"encoder_name": "resnet18", "classes": 2}


def load(tmp_path, description) -> None:
    path = tmp_path / "a.safetensors"
    save_file(WEIGHTS, path, metadata={"vitseg_zoo": json.dumps(description)})
    vitseg_zoo.load_model(path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"checkpoint_path": "/etc/passwd"},
        {"pretrained": True},
        {"pretrained_cfg_overlay": {"file": "/etc/passwd"}},
        {"pretrained_cfg": {"hf_hub_id": "me/model"}},
        {"cache_dir": "/tmp/x"},
        {"aux_params": {"pretrained": True}},
        {"encoder_name": "tu-hf-hub:me/model"},
        {"encoder_name": "tu-local-dir:/tmp"},
        {"encoder_name": ["resnet18"]},
        {"encoder_name": None},
        {"encoder_name": "no_such_encoder"},
        {"classes": "two"},
        {"classes": 0},
        {"classes": True},
        {"classes": 10**9},
        {"in_channels": -1},
        {"decoder_channels": [10**8] * 5},
        {"decoder_channels": [64] * 1000},
        {"decoder_channels": {"a": {"b": {"c": {"d": 1}}}}},
        {"encoder_depth": 10**6},
        {"encoder_depth": float("nan")},
        {"no_such_argument": 1},
    ],
    ids=str,
)
def test_arguments_that_describe_no_model(arguments, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    with pytest.raises(ValueError) as caught:
        load(tmp_path, {"architecture": "unet", "arguments": {**UNET, **arguments}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "description",
    [
        [],
        5,
        {"architecture": ["unet"], "arguments": UNET},
        {"architecture": "no_such", "arguments": UNET},
        {"architecture": "unet", "arguments": []},
        {"architecture": "unet", "arguments": UNET, "encoder_arguments": 5},
        {"architecture": "unet", "arguments": UNET, "class_names": 5},
        {"architecture": "unet", "arguments": UNET, "class_names": ["a"]},
        {"architecture": "unet", "arguments": UNET, "class_names": [1, 2]},
        {"architecture": "unet", "arguments": UNET, "input_size": 64},
        {"architecture": "unet", "arguments": UNET, "palette": [[999, 0, 0], [0, 0, 0]]},
        {"architecture": "unet", "arguments": UNET, "mean": "0.5"},
        {"architecture": "unet", "arguments": UNET, "license": {"name": "mit"}},
        {"architecture": "unet", "arguments": UNET, "commercial_use": "yes"},
    ],
    ids=str,
)
def test_descriptions_of_another_form(description, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        load(tmp_path, description)
    with pytest.raises(ValueError, match=r"a\.safetensors"):  # what `vitseg info` reads
        entry_of_file(tmp_path / "a.safetensors")


def test_a_small_file_takes_no_large_memory(tmp_path) -> None:
    huge = {"encoder_name": "vz-mit_b5", "decoder_segmentation_channels": 65536, "classes": 60000}
    with pytest.raises(ValueError, match=r"describes a model of [\d,]+ numbers, but holds 4\."):
        load(tmp_path, {"architecture": "fusedsegformer", "arguments": huge})


def itself() -> dict:
    loop: dict = {}
    loop["loop"] = loop
    return loop


@pytest.mark.parametrize(
    "odd",
    [
        {"arch": 5},
        {"arch": "no_such"},
        {"encoder_name": 7},
        {"class_names": 5},
        {"class_names": [1, 2]},
        {"image_size": "large"},
        {"image_size": [1, 2, 3]},
        {"palette": [999, 999]},
        {"palette": 7},
        {"model_args": [1]},
        {"model_args": {"pretrained": True}},
        {"model_args": itself()},
        {"out_classes": "two", "class_names": None},
        {"in_channels": "three"},
    ],
    ids=lambda odd: f"{next(iter(odd))}-{type(next(iter(odd.values()))).__name__}",
)
def test_odd_hyper_parameters(odd, tmp_path) -> None:
    hyper_parameters = {"arch": "unet", "encoder_name": "resnet18", "class_names": ["a", "b"], **odd}
    torch.save({"state_dict": WEIGHTS, "hyper_parameters": hyper_parameters}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt|cannot be built") as caught:
        vitseg_zoo.load_model(tmp_path / "a.ckpt")
    assert len(str(caught.value)) < 1000


def test_the_card_is_text() -> None:
    card = make_model_card(
        {
            "architecture": "unet",
            "arguments": UNET,
            "class_names": ["cat](javascript:alert(1))", "<script>alert(1)</script>\n# Forged"],
            "license": "mine\nlicense: mit\n# Free",
            "metric": "[best](http://example.org)",
            "recipe": "python /home/me/recipes/own_data.py --data ~/private/photos --out runs/mine",
        },
        "me/model",
        "Unet",
    )
    text = str(card)
    assert "<script>" not in text and "](" not in text.replace("\\](", "")
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Unet",
        "# pip install vitseg-zoo",
        "## Classes",
        "## Arguments",
    ]
    assert card.data.license == "other"
    assert "/home/me" not in text and "private" not in text and "--out runs/mine" in text


def test_no_folder_of_the_author_in_a_card(tmp_path) -> None:
    model = smp.create_model("vitseg", "vz-vitseg_tiny_patch16_128", None, classes=2)
    vitseg_zoo.save_pretrained(model, tmp_path / "pets")
    model.save_pretrained(tmp_path / "method")
    for name in ("pets", "method"):
        card = (tmp_path / name / "README.md").read_text()
        assert str(tmp_path) not in card and f"smp.from_pretrained('{name}')" in card


def build() -> nn.Module:
    model = smp.create_model(
        "fusedsegformer", "vz-mit_b0", None, classes=19, decoder_segmentation_channels=32
    )
    return model.eval()


def other_head(model: nn.Module) -> None:
    model.segmentation_head[0] = nn.Conv2d(32, 5, 1)


def other_activation(model: nn.Module) -> None:
    model.encoder.model.stages[0].blocks[0].mlp.act = nn.ReLU()


def softmax(model: nn.Module) -> None:
    model.segmentation_head[2] = nn.Softmax(1)


def classifier(model: nn.Module) -> None:
    model.classification_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 4))


def pruned(model: nn.Module) -> None:
    prune.l1_unstructured(model.segmentation_head[0], "weight", 0.5)


@pytest.mark.parametrize("change", [other_head, other_activation, softmax, classifier, pruned])
def test_a_changed_model_is_not_saved_as_what_it_was(change, tmp_path) -> None:
    model = build()
    change(model)
    for save in (vitseg_zoo.save_model, vitseg_zoo.save_pretrained):
        with pytest.raises(ValueError, match="The model is not the fusedsegformer that its arguments build"):
            save(model, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_accelerated_model_is_saved(tmp_path) -> None:
    model = vitseg_zoo.accelerate(smp.Segformer("mit_b0", encoder_weights=None, classes=3).eval())
    path = vitseg_zoo.save_model(model, tmp_path / "a.safetensors")
    again, image = vitseg_zoo.load_model(path)[0], torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(image), model(image), atol=1e-4, rtol=1e-4)


def test_what_load_model_gives_is_taken_back(tmp_path) -> None:
    model, metadata = vitseg_zoo.load_model("vitseg_tiny.pets")
    path = vitseg_zoo.save_model(model, tmp_path / "again.safetensors", **metadata)
    again = vitseg_zoo.load_model(path)[1]
    assert again["class_names"] == list(metadata["class_names"]) and again["recipe"] == metadata["recipe"]
    model.save_pretrained(tmp_path / "hub", **metadata)
    assert "pet" in (tmp_path / "hub" / "README.md").read_text()


def test_convert_says_what_it_assumes(tmp_path) -> None:
    source = smp.Segformer("mit_b0", encoder_weights=None, classes=4)
    torch.save({"model_state_dict": source.state_dict()}, tmp_path / "mine.pth")
    assert convert_file(tmp_path / "mine.pth", tmp_path / "mine.safetensors")[1]["assumed"] == ["mean", "std"]


@pytest.mark.parametrize(
    "key", ["swa_state_dict", "averaged_model", "model_ema_state_dict", "ema_state_dict", "state_dict_ema"]
)
@pytest.mark.parametrize("plain", ["state_dict", "model", "model_state_dict"])
def test_averaged_weights_come_first(key, plain, tmp_path) -> None:
    model = smp.create_model("unet", "resnet18", None)
    averaged = {f"module.{name}": value for name, value in model.state_dict().items()}
    other = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    torch.save({plain: other, key: {"n_averaged": torch.tensor(3), **averaged}}, tmp_path / "a.pth")
    again = smp.create_model("unet", "resnet18", None)
    vitseg_zoo.load_weights(again, tmp_path / "a.pth")
    assert torch.equal(again.encoder.conv1.weight, model.encoder.conv1.weight)


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_weights_go_into_what_wraps_a_model(wrap, tmp_path) -> None:
    source, model = (smp.create_model("unet", "resnet18", None) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "a.pth")
    vitseg_zoo.load_weights(wrap(model), tmp_path / "a.pth")
    assert torch.equal(source.encoder.conv1.weight, model.encoder.conv1.weight)
