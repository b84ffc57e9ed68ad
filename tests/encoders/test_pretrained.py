"""Pretrained weights come to every encoder by one way, and without a second network to hold them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitseg_zoo.encoders.mix_transformer import MixTransformer
from vitseg_zoo.encoders.pretrained import POINTER_REPO_ID, TimmWeights, resolve_pointer

# An encoder of SMP's table, the tag, the file that VITSEG_ZOO_WEIGHTS has, and the timm model that it is of.
ENCODERS = [
    ("vz-mit_b0", "imagenet", "mit_b0.imagenet", "mit_b0"),
    ("vz-mit_pvt_b0", "in1k", "mit_pvt_b0.in1k", "mit_pvt_b0"),
    ("vz-shuffle-vit_tiny_patch16_224", "augreg_in21k", "vit_tiny_patch16_224.augreg_in21k", None),
    ("vz-vit_small_patch14_dinov2", "imagenet", "vit_small_patch14_dinov2.lvd142m", None),
    ("vz-deit3_small_patch16_224", "fb_in1k", "deit3_small_patch16_224.fb_in1k", None),
    ("vz-shuffle-eva02_tiny_patch14_224", "mim_in22k", "eva02_tiny_patch14_224.mim_in22k", None),
]


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The classes of the timm networks that are built, in their order."""
    built: list[type] = []
    for cls in (VisionTransformer, Eva, MixTransformer):
        monkeypatch.setattr(cls, "__init__", _counted(cls.__init__, built))
    return built


def _counted(init: Callable, built: list[type]) -> Callable:
    @functools.wraps(init)
    def counted(self, *args, **kwargs) -> None:
        built.append(type(self))
        init(self, *args, **kwargs)

    return counted


@pytest.mark.parametrize(("name", "tag", "file", "model"), ENCODERS, ids=[row[2] for row in ENCODERS])
def test_one_way_and_one_network(
    name: str, tag: str, file: str, model: str | None, tmp_path: Path, monkeypatch, networks
) -> None:
    source = timm.create_model(model or file.partition(".")[0])
    weights = {key: torch.randn_like(value) for key, value in source.state_dict().items()}
    save_file(weights, tmp_path / f"{file}.safetensors")
    monkeypatch.setenv("VITSEG_ZOO_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    networks.clear()
    encoder = smp.encoders.get_encoder(name, weights=tag)
    assert len(networks) == 1
    loaded = encoder.model.state_dict()
    assert len(loaded) > 50
    for key, value in loaded.items():
        assert torch.equal(value, weights[key]), key


def test_names_of_deit_3s_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = timm.create_model("deit3_small_patch16_224")
    weights = {key: torch.randn_like(value) for key, value in source.state_dict().items()}
    theirs = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): weights[key] for key in weights
    }
    save_file(theirs, tmp_path / "deit3_small_patch16_224.fb_in1k.safetensors")
    monkeypatch.setenv("VITSEG_ZOO_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    encoder = smp.encoders.get_encoder("vz-shuffle-deit3_small_patch16_224", weights="fb_in1k")
    assert all(torch.equal(value, weights[key]) for key, value in encoder.model.state_dict().items())


def test_the_pointers_repository_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validate_repo_id(POINTER_REPO_ID)  # else the local cache would not take it
    # The address at which a client without the pointer would ask is the Hub's own interface, no user's page.
    assert hf_hub_url(POINTER_REPO_ID, "config.json").startswith(f"{constants.ENDPOINT}/api/")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    revision = TimmWeights("vit_tiny_patch16_224.augreg_in21k")["revision"]
    found = hf_hub_download(POINTER_REPO_ID, "config.json", revision=revision, cache_dir=tmp_path)
    assert json.loads(Path(found).read_text())["mean"] == [0.5, 0.5, 0.5]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".partial")]


def test_a_file_of_a_model_is_no_pointer() -> None:
    """A file from a stranger cannot make the encoder fetch what it names."""
    name = torch.tensor(list(b"vit_tiny_patch16_224.augreg_in21k"), dtype=torch.uint8)
    state_dict = {"vitseg_zoo.timm_model": name, "model.norm.weight": torch.ones(1)}
    assert resolve_pointer(state_dict) == state_dict
    encoder = smp.encoders.get_encoder("vz-mit_b0", weights=None)
    with pytest.raises(RuntimeError, match=r"vitseg_zoo\.timm_model"):
        nn.Module.load_state_dict(encoder, {**encoder.state_dict(), "vitseg_zoo.timm_model": name})
