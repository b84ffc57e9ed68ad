"""Parameter groups and freezing for fine-tuning, checked parameter by parameter."""

import re

import pytest
import segmentation_models_pytorch as smp
import tiny_vits  # noqa: F401  registers models
import torch

import vitseg_zoo

MODELS = {
    "unet": lambda: smp.Unet("vz-shuffle-tiny_vit", encoder_weights=None, decoder_channels=(16, 8, 8, 8, 8)),
    "fpn": lambda: smp.FPN("vz-tiny_beit", encoder_weights=None),
    "segmenter": lambda: smp.create_model("segmenter", "vz-tiny_dinov3", None),
    "sam": lambda: smp.create_model("vitseg", "vz-tiny_sam", None),
    "eomt": lambda: smp.create_model("eomt", "vz-tiny_eva", None, num_queries=3),
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_every_parameter_has_its_rate_and_decay(build) -> None:
    model = build()
    groups = vitseg_zoo.parameter_groups(model, learning_rate=0.1, weight_decay=0.05, layer_decay=0.5)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    for name, parameter in model.named_parameters():
        rate, decay = found[id(parameter)]
        if not name.startswith("encoder.model."):
            expected = 0.1
        elif block := re.match(r"encoder\.model\.blocks\.(\d)", name):
            expected = 0.1 * 0.5 ** (5 - int(block[1]))
        else:
            expected = 0.1 * 0.5 if ".norm." in name else 0.1 * 0.5**6
        assert rate == pytest.approx(expected), name
        learned_tokens = (
            "cls_token",
            "reg_token",
            "pos_embed",
            "queries",
            "class_tokens",
            "bias_table",
            "rel_pos_h",
            "rel_pos_w",
        )
        kept = parameter.ndim <= 1 or name.endswith(learned_tokens)
        assert decay == (0.0 if kept else 0.05), name
    torch.optim.AdamW(groups).step()


def test_frozen_blocks_are_left_out() -> None:
    model = MODELS["unet"]()
    vitseg_zoo.freeze_blocks(model, 2)
    for name, parameter in model.named_parameters():
        frozen = name.startswith("encoder.model.") and not re.search(r"blocks\.[234]|\.norm\.", name)
        assert parameter.requires_grad != frozen, name
    groups = vitseg_zoo.parameter_groups(model, 1e-3)
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(groups)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_freezing_the_whole_vit_leaves_a_linear_probe() -> None:
    model = smp.create_model("vitseg", "vz-tiny_vit", None)
    vitseg_zoo.freeze_blocks(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["segmentation_head.0.weight", "segmentation_head.0.bias"]


@pytest.mark.parametrize("arch", ["vitseg", "segmenter", "fpn"])
def test_a_frozen_batch_norm_keeps_its_statistics(arch: str) -> None:
    model = smp.create_model(arch, "vz-vitseg_tiny_patch16_128", encoder_weights=None).train()
    norm = model.encoder.model.patch_embed.input_norm
    vitseg_zoo.freeze_blocks(model, 0)
    assert not norm.training and model.encoder.model.blocks[0].training
    for change in (lambda: None, model.train, lambda: model.encoder.configure(drop_path_rate=0.1)):
        change()
        norm = model.encoder.model.patch_embed.input_norm
        model(torch.rand(2, 3, 128, 128))
        assert torch.equal(norm.running_mean, torch.zeros(3)) and norm.num_batches_tracked == 0
    assert model.encoder.model.blocks[0].training
    norm.requires_grad_(True)
    model.train()(torch.rand(2, 3, 128, 128))
    assert norm.num_batches_tracked == 1


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"blocks should lie in \[0, 5\], those of the encoder, got 6"):
        vitseg_zoo.freeze_blocks(MODELS["unet"](), 6)
    with pytest.raises(ValueError, match="use it with an encoder of the zoo"):
        vitseg_zoo.parameter_groups(smp.Unet("resnet18", encoder_weights=None), 1e-3)


def test_without_decay_by_layers_any_model_will_do() -> None:
    for model in (smp.Unet("resnet18", encoder_weights=None), MODELS["eomt"]()):
        groups = vitseg_zoo.parameter_groups(model, 1e-3, weight_decay=0.1, layer_decay=1)
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert all(group["lr"] == 1e-3 for group in groups)
        for name, parameter in model.named_parameters():
            learned_tokens = ("cls_token", "pos_embed", "queries")
            kept = parameter.ndim <= 1 or name.endswith(learned_tokens)
            assert decay[id(parameter)] == (0.0 if kept else 0.1), name
