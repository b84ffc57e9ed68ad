"""ViT-seg: the article's numbers, a reference written from its text, and the habits of timm and SMP."""

import copy
import json
import re
import warnings

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from timm.models import adapt_input_conv, get_notrace_functions
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from vit_seg_reference import ReferenceViTSeg

import vitseg_zoo
from vitseg_zoo.cli import main
from vitseg_zoo.trace import trace

TINY = "vz-vitseg_tiny_patch16_128"
SMALL_ARGS = {"embed_dim": 48, "depth": 3, "num_heads": 4}  # quick, with the shape of the real thing


def small(**kwargs) -> nn.Module:
    """A ViT-seg small enough for gradients in float64."""
    return smp.create_model("vitseg", TINY, encoder_weights=None, **{**SMALL_ARGS, **kwargs})


# ---- the article ----


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_equals_the_reference_in_outputs_statistics_and_gradients(mode: str) -> None:
    reference = ReferenceViTSeg(64, 16, 3, 3, **SMALL_ARGS, dropout=0.0).double()
    model = small(classes=3, img_size=64, attn_drop_rate=0.0, proj_drop_rate=0.0).double()
    model.load_state_dict(reference.renamed(reference.state_dict()))
    getattr(reference, mode)(), getattr(model, mode)()
    image, weight = torch.rand(2, 3, 64, 64).double(), torch.rand(2, 3, 64, 64).double()
    outputs = reference(image), model(image)
    for output in outputs:
        (output * weight).sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-10)
    expected = reference.renamed({key: p.grad for key, p in reference.named_parameters()})
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-10, atol=1e-10, msg=key)
    for key, buffer in reference.renamed(dict(reference.named_buffers())).items():
        torch.testing.assert_close(model.state_dict()[key], buffer, rtol=0, atol=1e-12)


def test_default_is_the_articles_model() -> None:
    model, reference = smp.create_model("vitseg", classes=3), ReferenceViTSeg()
    assert sum(p.numel() for p in model.parameters()) == 86_284_806
    model.load_state_dict(reference.renamed(reference.state_dict()))  # strict: the same layers, all of them
    image = torch.rand(1, 3, 128, 128)
    torch.testing.assert_close(model.eval()(image), reference.eval()(image), rtol=0, atol=1e-4)
    vit = model.encoder.model
    assert [block.attn.attn_drop.p for block in vit.blocks] == [0.2] * 12
    assert [block.mlp.drop2.p for block in vit.blocks] == [0.2] * 12
    others = {m.p for name, m in vit.named_modules() if isinstance(m, nn.Dropout) and "drop2" not in name}
    assert (
        others == {0.2, 0.0}
        and vit.pos_drop.p == vit.blocks[0].attn.proj_drop.p == vit.blocks[0].mlp.drop1.p == 0
    )


def test_starts_from_the_articles_distributions() -> None:
    ours, reference = smp.create_model("vitseg", classes=3).state_dict(), ReferenceViTSeg()
    expected = reference.renamed(reference.state_dict())
    assert abs(ours["encoder.model.pos_embed"].std() - 1) < 0.02
    for key, tensor in expected.items():
        if tensor.is_floating_point() and tensor.numel() > 500:
            torch.testing.assert_close(ours[key].std(), tensor.std(), rtol=0.1, atol=1e-6, msg=key)
            torch.testing.assert_close(
                ours[key].abs().max(), tensor.abs().max(), rtol=0.25, atol=1e-6, msg=key
            )


def test_a_patch_of_pixels_comes_from_its_own_token() -> None:
    model = small(classes=2, depth=1, img_size=64).eval()
    with torch.no_grad():
        before = model(torch.zeros(1, 3, 64, 64))
        # Class 1, row 3, column 5 of every patch: entry (class, y, x) of the linear layer.
        model.segmentation_head[0].bias[1 * 256 + 3 * 16 + 5] += 7
        change = model(torch.zeros(1, 3, 64, 64)) - before
    expected = torch.zeros(1, 2, 64, 64)
    expected[:, 1, 3::16, 5::16] = 7
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-4)


def test_attention_is_torchs_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    dropouts, original = [], nn.functional.scaled_dot_product_attention

    def counted(*args, dropout_p: float = 0.0, **kwargs) -> torch.Tensor:
        dropouts.append(dropout_p)
        return original(*args, dropout_p=dropout_p, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    model = small(img_size=32, depth=3)
    model(torch.rand(2, 3, 32, 32))
    model.predict(torch.rand(2, 3, 32, 32))
    assert dropouts == [0.2] * 3 + [0.0] * 3


# ---- timm ----


@pytest.mark.parametrize("name", timm.list_models("vitseg*"))
def test_timm_forward_and_backward(name: str) -> None:
    model = timm.create_model(name, num_classes=42, embed_dim=48, depth=2, num_heads=2)
    output = model(torch.rand(2, 3, 128, 128))
    output.mean().backward()
    assert output.shape == (2, 42) and all(p.grad is not None for p in model.parameters())
    assert isinstance(model.get_classifier(), nn.Linear)
    model.reset_classifier(0)
    assert model(torch.rand(1, 3, 128, 128)).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    side = 128 // model.patch_embed.patch_size[0]
    assert model(torch.rand(1, 3, 128, 128)).shape == (1, side**2, 48)
    with pytest.raises(AssertionError):
        timm.create_model(name, global_pool="token")


def test_timm_default_cfg_and_parameter_groups() -> None:
    names = timm.list_models("vitseg*")
    assert names == sorted(names, key=names.index) and len(names) == 6
    model = timm.create_model("vitseg_tiny_patch16_128")
    cfg = model.default_cfg
    assert cfg["classifier"] == "head" and cfg["first_conv"] == "patch_embed.proj"
    assert cfg["input_size"] == (3, 128, 128) and cfg["mean"] == (0, 0, 0) and cfg["std"] == (1, 1, 1)
    assert cfg["first_conv"] + ".weight" in model.state_dict()
    assert model.no_weight_decay() >= {"pos_embed"}
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher(coarse=False))
    grouped = {name for names in groups.values() for name in names}
    assert grouped == {name for name, _ in model.named_parameters()} and len(groups) == 14


def test_timm_features() -> None:
    image = torch.rand(1, 3, 128, 64)
    features_only = timm.create_model(
        "vitseg_tiny_patch16_128", features_only=True, out_indices=(0, 5, -1)
    ).eval()
    features = features_only(image)
    assert features_only.feature_info.reduction() == [16] * 3
    assert [tuple(f.shape) for f in features] == [(1, 192, 8, 4)] * 3
    model = timm.create_model("vitseg_tiny_patch16_128").eval()
    final, intermediates = model.forward_intermediates(image, indices=2, output_fmt="NLC")
    torch.testing.assert_close(final, model.forward_features(image))
    torch.testing.assert_close(intermediates[-1], final)
    torch.testing.assert_close(model.forward_head(final), model(image))
    model.prune_intermediate_layers(indices=1)
    assert model(image).shape == (1, 32, 192)


@pytest.mark.parametrize("in_chans", [1, 4, 13])
def test_timm_channels_and_sizes(in_chans: int) -> None:
    model = timm.create_model("vitseg_tiny_patch16_128", in_chans=in_chans, num_classes=5, depth=2).eval()
    for size in [(128, 128), (64, 96), (50, 33), (16, 16), (7, 200)]:
        assert model(torch.rand(1, in_chans, *size)).shape == (1, 5)


@pytest.mark.parametrize("strict", [False, True])
def test_timm_symbolic_trace_and_script(strict: bool) -> None:
    with timm.layers.set_scriptable(True):
        model = timm.create_model("vitseg_tiny_patch16_128", depth=2, dynamic_img_size=not strict).eval()
    tracer = {"autowrap_functions": get_notrace_functions(), "param_shapes_constant": True}
    output = get_graph_node_names(model, tracer_kwargs=tracer)[1][-1]
    traced = create_feature_extractor(model, [output], tracer_kwargs=tracer)
    image = torch.rand(1, 3, 128, 128)
    for other in (lambda x: traced(x)[output], torch.jit.script(model)):
        torch.testing.assert_close(other(image), model(image))
        if strict:
            with pytest.raises((AssertionError, torch.jit.Error), match="Input height"):
                other(torch.rand(1, 3, 96, 128))


def test_timm_gradient_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vitseg_tiny_patch16_128", num_classes=3, depth=3, attn_drop_rate=0, proj_drop_rate=0
    )
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    image = torch.rand(2, 3, 64, 64)
    for m in (model, other):
        m(image).sum().backward()
    for (key, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=key)


def test_timm_input_size_can_be_set() -> None:
    model = timm.create_model("vitseg_tiny_patch16_128", depth=1, num_classes=0).eval()
    image = torch.rand(1, 3, 96, 160)
    before = model.forward_features(image)
    model.set_input_size((96, 160))
    torch.testing.assert_close(model.forward_features(image), before)
    model.set_input_size((96, 160), patch_size=(8, 8))
    assert model.forward_features(image).shape == (1, 240, 192)


@pytest.mark.parametrize("in_chans", [1, 5])
def test_timm_loads_weights_for_other_channels_and_sizes(in_chans: int, tmp_path) -> None:
    model = timm.create_model("vitseg_tiny_patch16_128", depth=1, num_classes=3)
    model(torch.rand(2, 3, 128, 128))  # the norm learns its statistics
    torch.save(model.state_dict(), tmp_path / "trained.pth")
    overlay = {"file": str(tmp_path / "trained.pth"), "num_classes": 3}
    loaded = timm.create_model(
        "vitseg_tiny_patch16_128",
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        in_chans=in_chans,
        img_size=(64, 96),
        depth=1,
        num_classes=3,
    )
    mean = model.patch_embed.input_norm.running_mean
    assert loaded.patch_embed.input_norm.running_mean.tolist() == [
        mean[i % 3].item() for i in range(in_chans)
    ]
    expected = adapt_input_conv(in_chans, model.patch_embed.proj.weight)
    torch.testing.assert_close(loaded.patch_embed.proj.weight, expected)
    assert loaded.pos_embed.shape == (1, 4 * 6, 192) and torch.equal(loaded.head.weight, model.head.weight)


def test_timm_patches_are_squares() -> None:
    with pytest.raises(ValueError, match="patch_size should be a square"):
        timm.create_model("vitseg_tiny_patch16_128", patch_size=(8, 16))


def test_timm_pads_with_the_mean_image() -> None:
    model = timm.create_model("vitseg_tiny_patch16_128", depth=1, num_classes=0).eval()
    image = torch.rand(1, 3, 20, 16)
    padded = torch.zeros(1, 3, 32, 16)  # the running mean of an untrained batch norm is zero
    padded[:, :, :20] = image
    torch.testing.assert_close(model(image), model(padded))


# ---- SMP ----


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_smp_options(in_channels: int, depth: int, head: str) -> None:
    model = smp.create_model(
        "vitseg", TINY, None, in_channels, 7, encoder_depth=depth, decoder_head=head, drop_path_rate=0.1
    )
    assert len(model.encoder.model.blocks) == depth
    model(torch.rand(2, in_channels, 32, 48)).mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    for size in [(32, 48), (50, 33), (5, 7), (128, 128)]:
        assert model.predict(torch.rand(1, in_channels, *size)).shape == (1, 7, *size)


def test_smp_mlp_head_is_one_hidden_layer() -> None:
    linear, mlp = small(decoder_head="linear"), small(decoder_head="mlp")
    extra = sum(p.numel() for p in mlp.parameters()) - sum(p.numel() for p in linear.parameters())
    assert extra == 48 * 48 + 48


def test_smp_patch_8() -> None:
    model = smp.create_model("vitseg", "vz-vitseg_tiny_patch8_128", encoder_weights=None, classes=2, depth=1)
    assert model.segmentation_head[0].out_features == 8 * 8 * 2
    assert model(torch.rand(1, 3, 128, 128)).shape == (1, 2, 128, 128)


def test_smp_activation_and_labels() -> None:
    aux = {"classes": 5, "pooling": "avg", "dropout": 0.5, "activation": "sigmoid"}
    model = small(classes=4, activation="softmax", aux_params=aux).eval()
    masks, labels = model(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(masks.sum(1), torch.ones(2, 64, 64))
    assert labels.shape == (2, 5) and labels.min() >= 0 and labels.max() <= 1


def test_smp_frozen_encoder_keeps_its_batch_norm() -> None:
    model = small()
    model.freeze_encoder()
    model.train()
    before = copy.deepcopy(model.encoder.state_dict())
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    for key, value in model.encoder.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert all(p.grad is None for p in model.encoder.parameters())
    model.unfreeze_encoder()
    model(torch.rand(2, 3, 64, 64))
    assert not torch.equal(model.encoder.model.patch_embed.input_norm.running_mean, torch.zeros(3))


def test_smp_save_and_load(tmp_path) -> None:
    model = small(classes=5, decoder_head="mlp").eval()
    model.save_pretrained(tmp_path, dataset="pets", metrics={"iou": 0.5})
    image = torch.rand(1, 3, 64, 64)
    restored = smp.from_pretrained(tmp_path).eval()
    assert torch.equal(restored(image), model(image))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other = smp.from_pretrained(tmp_path, classes=9, strict=False).eval()
    assert any("Mismatched keys" in str(w.message) for w in caught)
    assert other(image).shape == (1, 9, 64, 64)
    assert torch.equal(other.encoder(image)[-1], model.encoder(image)[-1])
    with pytest.raises(RuntimeError, match="segmentation_head"):
        smp.from_pretrained(tmp_path, classes=9)


def test_smp_save_and_load_of_what_create_model_makes_by_default(tmp_path) -> None:
    model = smp.create_model("vitseg", classes=2, embed_dim=48, depth=1).eval()
    model.save_pretrained(tmp_path)
    vitseg_zoo.save_model(model, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["encoder_name"], config["encoder_weights"]) == ("vz-vitseg_base_patch16_128", None)
    image = torch.rand(1, 3, 64, 64)
    for restored in (smp.from_pretrained(tmp_path), vitseg_zoo.load_model(tmp_path / "model.safetensors")[0]):
        assert torch.equal(restored.eval()(image), model(image))


@pytest.mark.parametrize(
    "arch, encoder", [("segmenter", "vz-vit_tiny_patch16_224"), ("fusedsegformer", "vz-mit_b0")]
)
def test_smp_load_fetches_no_weights_of_the_encoder(arch: str, encoder: str, tmp_path) -> None:
    model = smp.create_model(arch, encoder, encoder_weights=None)
    model.config["encoder_weights"] = "imagenet"  # as if it had started from them
    model.save_pretrained(tmp_path)
    restored = smp.from_pretrained(tmp_path)  # tests have no network
    for key, value in restored.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_smp_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="list_models"):
        smp.create_model("vitseg", "resnet50", encoder_weights=None)
    with pytest.raises(KeyError, match="Wrong encoder name"):
        smp.create_model("vitseg", "vz-vitseg_huge", encoder_weights=None)
    with pytest.raises(
        KeyError, match=r"Wrong pretrained weights `imagenet`.*It has none: pass encoder_weights=None"
    ):
        smp.create_model("vitseg", TINY, encoder_weights="imagenet")
    with pytest.raises(ValueError, match="12 blocks"):
        smp.create_model("vitseg", TINY, encoder_weights=None, encoder_depth=13)
    with pytest.raises(ValueError, match="'linear' or 'mlp'"):
        small(decoder_head="conv")


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_in_one_graph(dynamic: bool) -> None:
    model = small(depth=2).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="eager")
    with torch.inference_mode():
        for size in [(64, 64), (96, 48)] if dynamic else [(50, 70)]:
            image = torch.rand(1, 3, *size)
            torch.testing.assert_close(compiled(image), model(image))


def test_export() -> None:
    model = small(depth=2).eval()
    image = torch.rand(1, 3, 64, 96)
    exported = torch.export.export(model, (image,))
    torch.testing.assert_close(exported.module()(image), model(image))


def test_forward_creates_no_tensor_off_the_inputs_device() -> None:
    model = small(depth=1, img_size=64, classes=3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = {key: torch.empty_like(t, device="cuda") for key, t in model.state_dict().items()}
        # Another size than the model's, so that position embeddings are resampled too.
        output = torch.func.functional_call(model, state, torch.rand(2, 3, 50, 90, device="cuda"))
    assert output.device.type == "cuda" and output.shape == (2, 3, 50, 90)


def test_trace_shows_the_articles_steps() -> None:
    model = smp.create_model("vitseg", classes=3)
    steps, whole = trace(model, torch.rand(2, 3, 128, 128))
    assert [(step.shape_in, step.shape_out, step.parameters) for step in steps] == [
        ((2, 3, 128, 128), (2, 3, 128, 128), 6),
        ((2, 3, 128, 128), (2, 64, 768), 0),
        ((2, 64, 768), (2, 64, 768), 590_592),
        ((2, 64, 768), (2, 64, 768), 49_152),
        ((2, 64, 768), (2, 64, 768), 85_054_464),
        ((2, 64, 768), (2, 64, 768), 590_592),
        ((2, 64, 768), (2, 768, 64), 0),
        ((2, 768, 64), (2, 3, 128, 128), 0),
    ]
    assert sum(step.parameters for step in steps) == whole.parameters == 86_284_806 and model.training


def test_trace_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "unet", "--encoder-name", "resnet18", "--image-size", "64", "96"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[0] == "encoder.conv1" and "(1, 64, 32, 48)" in lines[2]
    assert re.fullmatch(r"whole model +\(1, 3, 64, 96\) +\(1, 3, 64, 96\) +14,328,499", lines[-1])
    for wrong, message in {
        "vitsag": "no architecture or timm model 'vitsag'",
        "vitseg --image-size 0 3": "--image-size, --in-channels and --classes take positive numbers",
        "vit_tiny_patch16_224": "vit_tiny_patch16_224 does not take such an image",
    }.items():
        assert main(["trace", *wrong.split()]) == 1
        assert message in capsys.readouterr().err
