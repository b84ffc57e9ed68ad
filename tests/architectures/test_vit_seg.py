"""ViT-seg: the article's numbers, a reference written from its text, and the habits of SMP."""

import copy
import json
import warnings

import pytest
import segmentation_models_pytorch as smp
import torch
from small_vit_seg import SMALL_ARGS, TINY, small
from torch import nn
from vit_seg_reference import ReferenceViTSeg

import vitseg_zoo
from vitseg_zoo.encoders.pretrained import _say_untrained


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


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_smp_options(in_channels: int, depth: int, head: str) -> None:
    model = smp.create_model(
        "vitseg", TINY, None, in_channels, 7, encoder_blocks=depth, decoder_head=head, drop_path_rate=0.1
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


@pytest.mark.skipif(not hasattr(smp.base.SegmentationModel, "freeze_encoder"), reason="SMP has it since 0.6")
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
    with pytest.raises(KeyError, match=r"Wrong pretrained weights `in1k`.*'untrained', 'imagenet'"):
        smp.create_model("vitseg", TINY, encoder_weights="in1k")
    with pytest.raises(ValueError, match=r"encoder_blocks.*\[1, 12\], got 13"):
        smp.create_model("vitseg", TINY, encoder_weights=None, encoder_blocks=13)
    with pytest.raises(ValueError, match="'linear' or 'mlp'"):
        small(decoder_head="conv")


@pytest.mark.parametrize("arch", ["vitseg", "unet"])
def test_smps_own_examples_run_with_the_articles_encoder(arch: str, caplog) -> None:
    """They pass `encoder_weights="imagenet"` by default, and normalize as the encoder says."""
    name = "vz-vitseg_tiny_patch16_128"
    _say_untrained.cache_clear()
    for _ in range(2):
        model = smp.create_model(arch, encoder_name=name, in_channels=3, classes=1)
    said = "vitseg_tiny_patch16_128 has no pretrained weights: it starts from random ones."
    assert [record.message for record in caplog.records] == [said]  # once
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 1, 64, 64)
    params = smp.encoders.get_preprocessing_params(name)
    assert params["mean"] == [0, 0, 0] and params["std"] == [1, 1, 1]
