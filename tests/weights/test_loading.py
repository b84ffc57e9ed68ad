"""Checkpoints of other programs: each peer is built at random, converted, and gives the same logits."""

import argparse
import io
import pickle

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import tiny_vits  # noqa: F401  puts tiny ViTs into timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

import vitseg_zoo
from vitseg_zoo.cli import main
from vitseg_zoo.weights.checkpoint import read_checkpoint
from vitseg_zoo.weights.loading import load_model
from vitseg_zoo.weights.saving import convert_file, save_model


def randomize(model):
    """Random norms and running statistics, so that one left at its start shows."""
    for key, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            noise = torch.rand_like(value) * 0.5
            value.copy_(
                noise + 0.5 if value.ndim == 1 and "bias" not in key else value + 0.1 * (noise - 0.25)
            )
    return model.eval()


def save(content, path):
    torch.save(content, path)
    return path


def logits(model, image=None):
    with torch.inference_mode():
        return model.eval()(
            torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)) if image is None else image
        )


def assert_same(one, other):
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def smp_segformer():
    return randomize(
        smp.Segformer("mit_b0", encoder_weights=None, classes=4, decoder_segmentation_channels=256)
    )


@pytest.fixture(scope="module")  # each test loads all of its weights anew
def zoo_segformer():
    return smp.create_model("fusedsegformer", "vz-mit_b0", None, classes=4)


def to_nvidia(state_dict):
    """SMP's names in the layout of NVIDIA's files, written by mmsegmentation 0.x, with its notes."""
    renamed = {}
    for key, value in state_dict.items():
        key = key.replace("encoder.", "backbone.", 1)
        for level in range(4):
            key = key.replace(f"decoder.mlp_stage.{level}.linear.", f"decode_head.linear_c{4 - level}.proj.")
        key = key.replace("decoder.fuse_stage.0.", "decode_head.linear_fuse.conv.")
        key = key.replace("decoder.fuse_stage.1.", "decode_head.linear_fuse.bn.")
        renamed[key.replace("segmentation_head.0.", "decode_head.linear_pred.")] = value
    renamed["decode_head.conv_seg.weight"] = torch.zeros(4, 128, 1, 1)
    renamed["decode_head.conv_seg.bias"] = torch.zeros(4)
    meta = {
        "env_info": "sys.platform: linux",
        "mmseg_version": "0.11.0",
        "seed": np.int64(0),
        "CLASSES": ("wall", "floor", "sky", "tree"),
        "PALETTE": [[120, 120, 120], np.array([80, 50, 50]), [6, 230, 230], [4, 200, 3]],
        "epoch": 1,
    }
    return {"meta": meta, "state_dict": renamed, "optimizer": {"state": {}, "param_groups": []}}


def test_segformer_of_nvidia(smp_segformer, zoo_segformer, tmp_path):
    path = save(to_nvidia(smp_segformer.state_dict()), tmp_path / "segformer.b0.pth")
    report = vitseg_zoo.load_weights(zoo_segformer, path)
    assert report.format == "SegFormer of NVIDIA" and not report.missing and not report.unexpected
    assert report.ignored == ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
    assert_same(logits(zoo_segformer), logits(smp_segformer))
    # Into SMP's own class, too; and a converted file tells all.
    other = smp.Segformer("mit_b0", encoder_weights=None, classes=4)
    vitseg_zoo.load_weights(other, path)
    assert torch.equal(logits(other), logits(smp_segformer))
    convert_file(path, tmp_path / "out.safetensors")
    model, metadata = load_model(tmp_path / "out.safetensors")
    assert_same(logits(model), logits(smp_segformer))
    assert metadata["class_names"] == ["wall", "floor", "sky", "tree"]
    assert metadata["palette"][1] == [80, 50, 50]


def test_mean_and_deviation_of_photographs_are_not_said_of_other_channels(tmp_path):
    model = smp.Segformer("mit_b0", encoder_weights=None, in_channels=4, classes=4)
    convert_file(save(to_nvidia(model.state_dict()), tmp_path / "four.pth"), tmp_path / "four.safetensors")
    _, metadata = load_model(tmp_path / "four.safetensors")
    assert metadata["arguments"]["in_channels"] == 4
    assert "mean" not in metadata and "std" not in metadata


@pytest.mark.parametrize("spelling", ["in files", "since transformers 5"])
def test_segformer_of_hugging_face(spelling, zoo_segformer, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=4, decoder_hidden_size=256, id2label={i: f"class {i}" for i in range(4)}
    )
    source = randomize(transformers.SegformerForSemanticSegmentation(config))
    source.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    if spelling != "in files":
        path.unlink()
        path = save(source.state_dict(), tmp_path / "pytorch_model.bin")
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = source(image).logits  # at a quarter of the size
    report = vitseg_zoo.load_weights(zoo_segformer, path)
    assert report.format == "SegFormer of Hugging Face"
    features = zoo_segformer.eval().encoder(image)
    with torch.inference_mode():
        found = zoo_segformer.segmentation_head[0](zoo_segformer.decoder(features))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)  # its norms have another epsilon
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    metadata = load_model(tmp_path)[1]
    assert metadata["class_names"] == ["class 0", "class 1", "class 2", "class 3"]
    assert (metadata["mean"], metadata["std"]) == ([0, 0, 0], [1, 1, 1])


@pytest.mark.parametrize("spelling", ["in files", "since transformers 5"])
def test_classifier_of_hugging_face(spelling, tmp_path):
    transformers = pytest.importorskip("transformers")
    source = randomize(
        transformers.SegformerForImageClassification(transformers.SegformerConfig(num_labels=7))
    )
    path = tmp_path / "model.safetensors"
    if spelling == "in files":
        source.save_pretrained(tmp_path)
    else:
        path = save(source.state_dict(), tmp_path / "mit.bin")
    model = timm.create_model("mit_b0", num_classes=7)
    vitseg_zoo.load_weights(model, path)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(image), source(image).logits, atol=1e-3, rtol=1e-3)


def test_segformer_of_smp(smp_segformer, zoo_segformer, tmp_path):
    path = save(smp_segformer.state_dict(), tmp_path / "smp.pth")
    assert vitseg_zoo.load_weights(zoo_segformer, path).format == "SegFormer of SMP"
    assert_same(logits(zoo_segformer), logits(smp_segformer))
    back = smp.Segformer("mit_b0", encoder_weights=None, classes=4)
    vitseg_zoo.load_weights(back, save(zoo_segformer.state_dict(), tmp_path / "zoo.pth"))
    assert_same(logits(back), logits(smp_segformer))


def test_mmsegmentations_own_segformer_is_refused(smp_segformer, zoo_segformer, tmp_path):
    weights = to_nvidia(smp_segformer.state_dict())
    weights["state_dict"] = {
        key.replace("decode_head.linear_c", "decode_head.convs."): value
        for key, value in weights["state_dict"].items()
    }
    with pytest.raises(ValueError, match="mmsegmentation's own SegFormer"):
        vitseg_zoo.load_weights(zoo_segformer, save(weights, tmp_path / "mmseg.pth"))


@pytest.mark.parametrize("name", ["mit_b0", "pvt_v2_b0"])
def test_encoder_of_timm(name, tmp_path):
    source = randomize(
        timm.create_model(name, num_classes=0, **({} if name == "mit_b0" else {"mlp_ratios": (4,) * 4}))
    )
    path = save(source.state_dict(), tmp_path / "encoder.pth")
    model = smp.Unet("vz-mit_b0", encoder_weights=None)
    vitseg_zoo.load_weights(model.encoder, path)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert_same(model.encoder.eval()(image)[-1], source.forward_features(image))
    with pytest.raises(RuntimeError, match=r"not in the file: decoder.*strict=False"):
        vitseg_zoo.load_weights(model, path)
    assert not vitseg_zoo.load_weights(model, path, strict=False).unexpected


def test_vit_of_timm(tmp_path):
    source = randomize(timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=64))
    path = save(source.state_dict(), tmp_path / "vit.pth")
    model = smp.create_model("segmenter", "vz-vit_tiny_patch16_224", None, classes=2, img_size=64)
    assert vitseg_zoo.load_weights(model.encoder, path).ignored == ("head.weight", "head.bias")
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        tokens = source.forward_features(image)[:, 1:]
        assert_same(model.encoder.eval()(image)[-1].flatten(2).transpose(1, 2), tokens)


def test_what_timms_conversion_drops_is_reported(tmp_path):
    source = timm.create_model("tiny_dinov3", qkv_bias=False).state_dict()
    weights = {key.replace("reg_token", "storage_tokens"): value for key, value in source.items()}  # Meta's
    beside = ["mask_token", "rope_embed.periods"]
    weights |= {key: torch.ones(4) for key in beside}
    bias = {"blocks.0.attn.qkv.bias": torch.zeros(3 * 64)}
    encoder = smp.create_model("segmenter", "vz-tiny_dinov3", None, qkv_bias=False).encoder

    report = vitseg_zoo.load_weights(encoder, save(weights | bias, tmp_path / "zeros.pth"))
    assert report.loaded == len(encoder.state_dict())
    assert {"mask_token", "rope_embed.periods", *bias} <= set(report.ignored)
    bias["blocks.0.attn.qkv.bias"][0] = 1  # another function
    path = save(weights | bias, tmp_path / "bias.pth")
    with pytest.raises(RuntimeError, match=r"left over: blocks\.0\.attn\.qkv\.bias"):
        vitseg_zoo.load_weights(encoder, path)
    assert vitseg_zoo.load_weights(encoder, path, strict=False).unexpected == tuple(bias)


def test_an_encoder_leaves_a_models_head_with_a_word(smp_segformer, tmp_path):
    path = save(smp_segformer.state_dict(), tmp_path / "segformer.pth")
    encoder = smp.create_model("unet", "vz-mit_b0", None).encoder
    report = vitseg_zoo.load_weights(encoder, path)
    assert report.loaded == len(encoder.state_dict())
    heads = [key for key in smp_segformer.state_dict() if not key.startswith("encoder.")]
    assert set(report.ignored) == set(heads)


def test_notebook_of_the_article(tmp_path):
    source = randomize(smp.create_model("vitseg", "vz-vitseg_tiny_patch16_128", None, classes=3))
    places = (
        ("encoder.model.patch_embed.input_norm.", "layers.0."),
        ("encoder.model.patch_embed.proj.", "layers.1.pe.embed_layer."),
        ("encoder.model.pos_embed", "layers.1.position_embed"),
        ("encoder.model.blocks.", "layers.2."),
        (".norm1.", ".ln1."),
        (".norm2.", ".ln2."),
        (".attn.qkv.", ".mha.in_proj_"),
        (".attn.proj.", ".mha.out_proj."),
        (".mlp.fc1.", ".mlp.layers.0."),
        (".mlp.fc2.", ".mlp.layers.2."),
        ("segmentation_head.0.", "layers.3.projection."),
    )
    notebook = {}
    for key, value in source.state_dict().items():
        for own, theirs in places:
            key = key.replace(own, theirs)
        notebook[key] = value.flatten(1) if key == "layers.1.pe.embed_layer.weight" else value
    notebook["layers.1.position_embed"] = notebook["layers.1.position_embed"][0]
    path = save(notebook, tmp_path / "vit.pth")
    model = smp.create_model("vitseg", "vz-vitseg_tiny_patch16_128", None, classes=3)
    assert vitseg_zoo.load_weights(model, path).format == "ViT-seg of the article's notebook"
    image = torch.rand(1, 3, 128, 128)
    assert torch.equal(logits(model, image), logits(source, image))
    rebuilt, metadata = load_model(path)
    assert torch.equal(logits(rebuilt, image), logits(source, image))
    assert metadata["mean"] == [0.0, 0.0, 0.0]  # the model normalizes by itself


@pytest.mark.parametrize("head", ["mask", "linear"])
def test_segmenter_of_its_authors(head, tmp_path):
    arguments = {"encoder_weights": None, "decoder_head": head, "classes": 5, "img_size": 64}
    source = randomize(smp.create_model("segmenter", "vz-vit_tiny_patch16_384", **arguments))
    theirs = {"encoder.head.weight": torch.zeros(5, 192), "encoder.head.bias": torch.zeros(5)}
    for key, value in source.state_dict().items():
        key = key.replace("encoder.model.", "encoder.")
        key = (
            key.replace("class_tokens", "cls_emb")
            .replace("proj_in.", "proj_dec.")
            .replace("proj_class", "proj_classes")
        )
        key = key.replace("decoder.norm.", "decoder.decoder_norm.")
        if head == "linear":
            key = key.replace("decoder.", "decoder.head.")
            value = value.flatten(1) if key == "decoder.head.weight" else value
        theirs[key] = value
    path = save({"model": theirs, "n_cls": 5, "epoch": 3}, tmp_path / "checkpoint.pth")
    model, metadata = load_model(path)
    assert metadata["arguments"]["decoder_head"] == head
    assert torch.equal(logits(model), logits(source))
    assert metadata["mean"] == [0.5, 0.5, 0.5]
    (tmp_path / "variant.yml").write_text("dataset_kwargs:\n  normalization: deit\nnet_kwargs: {}\n")
    assert load_model(path)[1]["mean"] == (0.485, 0.456, 0.406)


class Averaged(nn.Module):
    """A training module with the trained and the averaged model in it, and tensors beside."""

    def __init__(self, model, averaged):
        super().__init__()
        self.model, self.ema_model = model, averaged
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(2))


def unet():
    return randomize(
        smp.Unet("resnet18", encoder_weights=None, classes=2, encoder_depth=3, decoder_channels=(32, 16, 8))
    )


@pytest.mark.slow
def test_prefixes_and_averages(tmp_path):
    trained, averaged = unet(), unet()
    model = unet()
    image = torch.rand(1, 3, 64, 64)
    for name, content, expected in [
        ("data parallel", nn.DataParallel(trained).state_dict(), trained),
        ("compiled", torch.compile(trained).state_dict(), trained),
        ("compiled in data parallel", nn.DataParallel(torch.compile(trained)).state_dict(), trained),
        ("averaged", torch.optim.swa_utils.AveragedModel(averaged).state_dict(), averaged),
        ("lightning", {"state_dict": nn.ModuleDict({"net": torch.compile(trained)}).state_dict()}, trained),
        ("lightning, averaged", {"state_dict": Averaged(trained, averaged).state_dict()}, averaged),
        ("timm's", {"state_dict": trained.state_dict(), "state_dict_ema": averaged.state_dict()}, averaged),
        ("arguments", {"model": trained.state_dict(), "args": argparse.Namespace(lr=0.1)}, trained),
    ]:
        vitseg_zoo.load_weights(model, save(content, tmp_path / "last.ckpt"))
        assert torch.equal(logits(model, image), logits(expected, image)), name
        randomize(model)
    ignored = read_checkpoint(save(Averaged(trained, averaged).state_dict(), tmp_path / "last.ckpt")).ignored
    assert "loss.weight" in ignored and "model.segmentation_head.0.weight" in ignored


def test_nothing_is_loaded_by_halves(tmp_path, caplog):
    source, model = unet(), unet()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = source.state_dict()
    del weights["decoder.blocks.0.conv1.0.weight"]
    weights["segmentation_head.0.weight"] = torch.zeros(7, 8, 3, 3)
    weights["segmentation_head.0.bias"] = torch.zeros(7)
    weights["decoder.extra"] = torch.zeros(1)
    path = tmp_path / "other.safetensors"
    save_file(weights, path)
    with pytest.raises(RuntimeError) as caught:
        vitseg_zoo.load_weights(model, path)
    assert "\n" not in str(caught.value)
    for named in (
        "decoder.blocks.0.conv1.0.weight",
        "segmentation_head.0.weight",
        "decoder.extra",
        "strict=False",
    ):
        assert named in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    report = vitseg_zoo.load_weights(model, path, strict=False)
    assert report.missing == ("decoder.blocks.0.conv1.0.weight",)
    assert report.unexpected == ("decoder.extra",)
    assert set(report.mismatched) == {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    assert len(caplog.messages) == 1 and "segmentation_head.0.weight" in caplog.messages[0]
    assert torch.equal(model.encoder.conv1.weight, source.encoder.conv1.weight)


def _old_format() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _torch_script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), file)
    return file.getvalue()


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the code in the file ran')",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"state_dict": Bomb()}, protocol=2), "run code"),
        (b"PK\x03\x04 not really an archive", "damaged"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{broken", "neither"),
        (b"\xff" * 64, "neither"),
        (b"", "neither"),
        (b"\x80", "damaged"),
        (_old_format().replace(b"cpu", b"cp\xff"), "damaged"),
        (_old_format()[:-6], "damaged"),
        (pickle.dumps({0: 1}, protocol=2), "damaged"),
        (_torch_script(), "TorchScript archive, whose code is not run: save the weights alone"),
    ],
    ids=[
        *("bare pickle", "broken archive", "broken header", "oversized header", "empty"),
        *("one byte", "not UTF-8", "cut", "other pickle", "TorchScript"),
    ],
)
def test_files_that_are_refused(content, message, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        vitseg_zoo.load_weights(unet(), path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_zipped_bomb_and_strangers(tmp_path):
    with pytest.raises(ValueError, match="run code"):
        read_checkpoint(
            save({"state_dict": {"weight": torch.zeros(1)}, "extra": Bomb()}, tmp_path / "bomb.pth")
        )
    with pytest.raises(ValueError, match="no weights"):
        read_checkpoint(save({"epoch": 3}, tmp_path / "empty.pth"))
    with pytest.raises(ValueError, match="no weights"):
        read_checkpoint(save({0: torch.zeros(1)}, tmp_path / "numbered.pth"))
    with pytest.raises(ValueError, match="does not fit Unet"):
        vitseg_zoo.load_weights(unet(), save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth"))


def test_converted_file_is_all_that_prediction_needs(smp_segformer, tmp_path, capsys):
    path = save(to_nvidia(smp_segformer.state_dict()), tmp_path / "segformer.b0.pth")
    target = tmp_path / "alone" / "pets.safetensors"
    assert main(["convert", str(path), str(target), "--license", "research only"]) == 0
    shown = capsys.readouterr().out
    for part in ("SegFormer of NVIDIA: ", "source: segformer.b0.pth", "decode_head.conv_seg", "written: "):
        assert part in shown
    metadata = load_model(target)[1]
    assert metadata["vitseg_zoo_version"] == vitseg_zoo.__version__
    assert (metadata["license"], metadata["source"]) == (
        "research only",
        "segformer.b0.pth (SegFormer of NVIDIA)",
    )
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    path.unlink()
    command = ["predict", str(tmp_path / "photo.png"), "--weights", str(target), "--out", str(tmp_path)]
    assert main(command) == 0
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1)[None]
    expected = logits(smp_segformer, image).argmax(1)[0].numpy()
    assert (np.asarray(Image.open(tmp_path / "photo_mask.png")) == expected).mean() > 0.999


def test_checkpoint_of_a_module_like_that_of_smps_examples(tmp_path):
    source = unet()
    arguments = {"encoder_depth": 3, "decoder_channels": (32, 16, 8)}
    hyper_parameters = {
        "arch": "Unet",
        "encoder_name": "resnet18",
        "in_channels": 3,
        "out_classes": 2,
        "model_args": arguments,
    }
    weights = {f"model.{key}": value for key, value in source.state_dict().items()}
    content = {"state_dict": weights, "hyper_parameters": hyper_parameters, "pytorch-lightning_version": "2"}
    model, metadata = load_model(save(content, tmp_path / "last.ckpt"))
    assert torch.equal(logits(model), logits(source))
    assert metadata["arguments"]["classes"] == 2
    del hyper_parameters["out_classes"]
    with pytest.raises(ValueError, match="how many classes"):
        load_model(save(content, tmp_path / "last.ckpt"))


def test_license_in_a_file_is_said(tmp_path, caplog):
    path = tmp_path / "a.safetensors"
    vitseg_zoo.save_model(unet(), path, license="Research only", commercial_use=False)
    for _ in range(2):
        load_model(path)
        vitseg_zoo.load_weights(unet(), path)
    (said,) = caplog.messages
    assert said == f"{path}: the weights must not be used commercially. License: Research only."


def test_command(tmp_path, capsys):
    source = randomize(smp.create_model("vitseg", "vz-vitseg_tiny_patch16_128", None, classes=2))
    weights = {"state_dict": {f"model.{key}": value for key, value in source.state_dict().items()}}
    path = save(weights, tmp_path / "a.ckpt")
    target = tmp_path / "b.safetensors"
    assert main(["convert", str(path), str(target)]) == 1  # nothing says which architecture
    message = capsys.readouterr().err
    assert "load_weights" in message and len(message.splitlines()) == 1
    vitseg_zoo.save_pretrained(source, tmp_path / "folder")
    assert main(["convert", str(tmp_path / "folder"), str(target)]) == 0
    assert "smp.create_model('vitseg'" in capsys.readouterr().out
    image = torch.rand(1, 3, 128, 128)
    assert torch.equal(logits(load_model(target)[0], image), logits(source, image))


def test_safetensors_that_begin_like_a_pickle(tmp_path):
    """The first byte of a safetensors file is its header's length, and any number."""
    path = tmp_path / "model.safetensors"
    firsts = set()
    for length in range(1, 300, 3):
        save_file({"weight": torch.zeros(1)}, path, metadata={"note": "x" * length})
        firsts.add(path.read_bytes()[:1])
        checkpoint = read_checkpoint(path)
        assert checkpoint.notes["metadata"]["note"] == "x" * length
    assert {b"P", b"\x80"} <= firsts


def test_position_embeddings_of_another_size_are_resampled(tmp_path, caplog, capsys):
    arguments = {"embed_dim": 48, "depth": 1, "num_heads": 4, "decoder_head": "linear"}
    small, large = (
        smp.create_model("vitseg", "vz-vitseg_tiny_patch16_128", None, classes=2, img_size=side, **arguments)
        for side in (128, 256)
    )
    report = vitseg_zoo.load_weights(large, save(randomize(small).state_dict(), tmp_path / "small.pth"))
    assert not (report.missing or report.unexpected or report.mismatched or caplog.messages)
    assert capsys.readouterr() == ("", "")
    grid = small.encoder.model.pos_embed.detach().reshape(1, 8, 8, -1).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, (16, 16), mode="bicubic", antialias=True)
    assert_same(large.encoder.model.pos_embed.detach(), expected.flatten(2).mT)


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [("unet", "resnet18"), ("fusedsegformer", "vz-mit_b0"), ("segmenter", "vz-test_vit")],
)
def test_shapes_in_the_encoder_are_named_as_such(arch, encoder, tmp_path, caplog, capfd):
    """SMP's own loading would leave them out, and print a line for each."""
    three, four = (smp.create_model(arch, encoder, None, in_channels=channels) for channels in (3, 4))
    path = save(three.state_dict(), tmp_path / "three.pth")
    (first,) = (key for key, value in three.state_dict().items() if value.shape[1:2] == (3,) and "enc" in key)
    before = {key: value.clone() for key, value in four.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"of another shape: {first}") as caught:
        vitseg_zoo.load_weights(four, path)
    assert "not in the file" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in four.state_dict().items())
    report = vitseg_zoo.load_weights(four, path, strict=False)
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), (first,))
    assert report.loaded == len(before) - 1
    own = four.state_dict()
    assert all(torch.equal(own[key], value) for key, value in three.state_dict().items() if key != first)
    assert len(caplog.messages) == 1 and "Mismatched" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "text", ['{"architecture": "unet"}', "[]", "unet", '{"architecture":"unet","arguments":1}']
)
def test_metadata_without_the_model(text, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    save_file({"encoder.weight": torch.zeros(1)}, path, metadata={"vitseg_zoo": text})
    assert main(["convert", str(path), str(tmp_path / "b.safetensors")]) == 1
    error = capsys.readouterr().err
    assert str(path) in error and "should be JSON with `architecture` and `arguments`" in error


def test_what_cannot_be_read_beside_or_written_is_named(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    path, target = save_model(unet(), tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    monkeypatch.setattr("vitseg_zoo.weights.saving.save_file", full)
    assert main(["convert", str(path), str(target)]) == 1
    (tmp_path / "config.json").write_bytes(b"\xff{")
    path = save(unet().state_dict(), tmp_path / "a.pth")
    assert main(["convert", str(path), str(target)]) == 1
    written, read = capsys.readouterr().err.splitlines()
    assert f"{target} cannot be written: I/O error: No space left" in written
    assert f"{tmp_path / 'config.json'} is not JSON" in read
