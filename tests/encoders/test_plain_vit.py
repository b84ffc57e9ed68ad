"""timm's ViTs as encoders: which are found, and that they compute what timm computes, at any size."""

import copy
import pickle
import subprocess
import sys
import time

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import constants
from tiny_vits import FAMILIES, WEIGHTS_FILE
from torch import nn

from vitseg_zoo.cli import main
from vitseg_zoo.encoders import timm_vits
from vitseg_zoo.encoders.plain_vit import PlainViTEncoder, plain_vit_names


def test_finds_every_family_and_nothing_else() -> None:
    names = set(plain_vit_names())
    assert names >= {
        "vit_base_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_siglip_224", "vit_small_patch16_dinov3", "vit_base_patch16_clip_224",
        "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224",
        "beitv2_base_patch16_224", "eva02_tiny_patch14_224", "flexivit_small",
        "samvit_base_patch16", "vit_relpos_small_patch16_224",
    }  # fmt: skip
    others = {
        "swin_tiny_patch4_window7_224",
        "cait_xxs24_224",
        "pvt_v2_b0",
        "vit_base_r50_s16_224",
        "resnet18",
    }
    assert not names & others
    assert all(f"vz-{name}" in smp.encoders.encoders for name in names)


def test_listing_builds_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: nn.Module, *args: object, **kwargs: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(nn.Module, "__init__", refuse)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        entries = timm_vits._smp_encoders()
        seconds.append(time.process_time() - start)
    assert len(entries) > 400
    assert min(seconds) < 0.2  # 25 ms on the machine of development; others may be slower


def test_list_command_shows_size_stride_and_tags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "vz-shuffle-vit_*_reg4_dinov2"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    # Table 17 of "DINOv2" gives 21, 86, 300 and 1100 million parameters; the patches have 14 pixels.
    shown = {row[0]: (row[2], row[4], row[-1]) for row in rows[1:]}
    assert shown == {
        "vz-shuffle-vit_small_patch14_reg4_dinov2": ("22.1", "14", "lvd142m"),
        "vz-shuffle-vit_base_patch14_reg4_dinov2": ("86.6", "14", "lvd142m"),
        "vz-shuffle-vit_large_patch14_reg4_dinov2": ("304.4", "14", "lvd142m"),
        "vz-shuffle-vit_giant_patch14_reg4_dinov2": ("1136.5", "14", "lvd142m"),
    }


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("native", [True, False])
def test_map_is_timms(name: str, native: bool) -> None:
    encoder = PlainViTEncoder(name).eval()
    reference = copy.deepcopy(encoder.model)
    height, width = reference.patch_embed.img_size
    if not native:
        patch = encoder.patch_size
        height, width = 6 * patch, 3 * patch
        if name != "tiny_sam":  # which takes any size by itself
            reference.set_input_size(img_size=(height, width))
    image = torch.randn(2, 3, height, width)
    with torch.no_grad():
        expected = reference.forward_intermediates(
            image, indices=1, norm=name != "tiny_sam", intermediates_only=True
        )[0]
        image_again, actual = encoder(image)
    assert image_again is image
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_may_change_and_are_padded_to_whole_patches(name: str) -> None:
    encoder = PlainViTEncoder(name, in_channels=4).eval()
    patch = encoder.patch_size
    with torch.no_grad():
        for height, width in [(50, 70), (32, 96), (50, 70)]:
            image = torch.randn(1, 4, height, width)
            padded = nn.functional.pad(image, (0, -width % patch, 0, -height % patch))
            feature = encoder(image)[-1]
            assert feature.shape == (1, 64, -(-height // patch), -(-width // patch))
            torch.testing.assert_close(feature, encoder(padded)[-1])


def test_training_at_another_size_reaches_the_models_own_tables() -> None:
    encoder = PlainViTEncoder("tiny_beit")
    parameters = dict(encoder.named_parameters())
    encoder(torch.randn(1, 3, 96, 48))[-1].square().sum().backward()
    assert {name: id(p) for name, p in encoder.named_parameters()} == {
        n: id(p) for n, p in parameters.items()
    }
    table = encoder.model.blocks[0].attn.relative_position_bias_table
    assert table.grad.abs().sum() > 0
    # A finite difference in the direction of the gradient, in float64.
    encoder = encoder.double().eval()
    image = torch.randn(1, 3, 96, 48, dtype=torch.float64)
    table = encoder.model.blocks[0].attn.relative_position_bias_table
    table.grad = None
    encoder(image)[-1].square().sum().backward()
    step = 1e-5 * table.grad / table.grad.norm()
    with torch.no_grad():
        table += step
        above = encoder(image)[-1].square().sum()
        table -= 2 * step
        below = encoder(image)[-1].square().sum()
    torch.testing.assert_close((above - below) / 2e-5, table.grad.norm(), rtol=1e-5, atol=1e-8)


def test_copies_and_pickles_after_another_size() -> None:
    encoder = PlainViTEncoder("tiny_beit").eval()
    image = torch.randn(1, 3, 32, 96)
    with torch.no_grad():
        expected = encoder(image)[-1]
        for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
            assert torch.equal(copied(image)[-1], expected)


def test_gray_images_give_what_three_equal_channels_gave() -> None:
    encoder = PlainViTEncoder("tiny_vit").eval()
    gray = torch.randn(1, 1, 64, 64)
    expected = encoder(gray.expand(-1, 3, -1, -1))[-1]
    encoder.set_in_channels(1)
    assert encoder.out_channels == [1, 64]
    torch.testing.assert_close(encoder.eval()(gray)[-1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prefix", ["vz-", "vz-shuffle-"])
def test_loads_timms_weights_with_classifier(name: str, prefix: str) -> None:
    weights = timm.create_model(name).state_dict()  # a classifier of 10 classes and all
    encoder = smp.encoders.get_encoder(prefix + name, weights=None, depth=3)
    encoder.load_state_dict(weights)
    own = encoder.model.state_dict()
    assert own and all(torch.equal(value, weights[key]) for key, value in own.items())
    encoder.load_state_dict(encoder.state_dict())


def test_loads_weights_of_another_resolution_as_timm_resamples_them() -> None:
    large = timm.create_model("tiny_vit", img_size=128)
    encoder = PlainViTEncoder("tiny_vit")
    encoder.load_state_dict(large.state_dict())
    large.set_input_size(img_size=64)
    torch.testing.assert_close(encoder.model.pos_embed, large.pos_embed)


def test_loads_the_encoder_of_a_whole_smp_model_and_into_one() -> None:
    unet = smp.Unet("vz-tiny_vit", encoder_weights=None, decoder_channels=(16, 8, 8, 8, 8))
    encoder = smp.encoders.get_encoder("vz-tiny_vit", weights=None)
    encoder.load_state_dict(unet.state_dict())
    assert torch.equal(encoder.model.pos_embed, unet.encoder.model.pos_embed)
    other = smp.Unet("vz-tiny_vit", encoder_weights=None, decoder_channels=(16, 8, 8, 8, 8))
    other.load_state_dict(unet.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(unet.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_strange_weights_are_an_error() -> None:
    weights = timm.create_model("tiny_vit").state_dict()
    encoder = PlainViTEncoder("tiny_vit")
    with pytest.raises(RuntimeError, match="strange"):
        encoder.load_state_dict({**weights, "strange.weight": torch.zeros(1)})
    del weights["blocks.0.attn.qkv.weight"]
    with pytest.raises(RuntimeError, match=r"blocks\.0\.attn\.qkv\.weight"):
        encoder.load_state_dict(weights)


def test_preprocessing_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, tag in [("vit_small_patch14_dinov2", "lvd142m"), ("vit_base_patch16_siglip_224", "webli")]:
        params = smp.encoders.get_preprocessing_params(f"vz-{name}", pretrained=tag)
        cfg = timm.models.get_pretrained_cfg(f"{name}.{tag}")
        assert (params["mean"], params["std"]) == (list(cfg.mean), list(cfg.std))
        assert (params["input_range"], params["input_space"]) == ([0, 1], "RGB")
    default = smp.encoders.get_preprocessing_params("vz-vit_tiny_patch16_224")
    assert default["mean"] == [0.5, 0.5, 0.5]
    own = smp.encoders.get_preprocessing_params("vz-vitseg_tiny_patch16_128")
    assert (own["mean"], own["std"]) == ([0.0] * 3, [1.0] * 3)  # its first layer normalizes


@pytest.mark.parametrize("weights", ["local", "imagenet"])
def test_smp_takes_the_weights_of_timms_tags(weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    trained = timm.create_model("tiny_vit").state_dict()
    torch.save(trained, WEIGHTS_FILE)
    unet = smp.Unet("vz-tiny_vit", encoder_weights=weights)
    assert torch.equal(unet.encoder.model.blocks[0].attn.qkv.weight, trained["blocks.0.attn.qkv.weight"])
    gray = smp.FPN("vz-tiny_vit", encoder_weights=weights, in_channels=1)
    torch.testing.assert_close(
        gray.encoder.model.patch_embed.proj.weight, trained["patch_embed.proj.weight"].sum(1, keepdim=True)
    )
    vitseg = smp.create_model("vitseg", "vz-tiny_vit", encoder_weights=weights)
    assert torch.equal(vitseg.encoder.model.norm.weight, trained["norm.weight"])
    assert smp.encoders.get_preprocessing_params("vz-tiny_vit", weights)["std"] == [0.4, 0.5, 0.6]
    with pytest.raises(KeyError, match="Wrong pretrained weights `none`"):
        smp.create_model("vitseg", "vz-tiny_vit", encoder_weights="none")


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("name", ["tiny_vit", "tiny_eva", "tiny_beit"])
def test_vitseg_takes_any_plain_vit(name: str, head: str) -> None:
    model = smp.create_model(
        "vitseg", f"vz-{name}", encoder_weights=None, classes=5, in_channels=4, decoder_head=head
    )
    assert model(torch.randn(2, 4, 60, 75)).shape == (2, 5, 60, 75)


def test_other_encoders_are_refused_by_name() -> None:
    for name in ("resnet18", "tu-vit_tiny_patch16_224"):
        with pytest.raises(ValueError, match="vz-vit_small_patch16_224"):
            smp.create_model("vitseg", name, encoder_weights=None)
    with pytest.raises(KeyError, match="vz-vit_tiny_patch16_224"):
        smp.create_model("vitseg", "vz-vit_tiny_patch16_242", encoder_weights=None)
    with pytest.raises(ValueError, match="resnet18 is not a plain ViT"):
        PlainViTEncoder("resnet18")
    with pytest.raises(ValueError, match=r"encoder_blocks of tiny_vit should be in range \[1, 5\], got 6"):
        PlainViTEncoder("tiny_vit", blocks=6)


def test_configure_sets_drop_path_and_keeps_weights() -> None:
    encoder = smp.encoders.get_encoder("vz-tiny_vit", weights=None).eval()
    image = torch.randn(1, 3, 64, 64)
    before = encoder(image)
    encoder.configure(drop_path_rate=0.2)
    assert encoder.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert not encoder.training
    for a, b in zip(before, encoder(image), strict=True):
        assert torch.equal(a, b)


def test_checkpointing_changes_no_gradient() -> None:
    encoder = PlainViTEncoder("tiny_eva")
    image = torch.randn(1, 3, 56, 56)
    gradients = []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad()
        encoder(image)[-1].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_eva", "tiny_beit"])
def test_configure_for_another_size_is_what_resampling_at_each_call_gives(name: str) -> None:
    encoder = PlainViTEncoder(name).eval()
    image = torch.randn(1, 3, 6 * encoder.patch_size, 3 * encoder.patch_size)
    expected = encoder(image)[-1]
    encoder.configure(img_size=image.shape[2:])
    assert tuple(encoder.model.patch_embed.img_size) == tuple(image.shape[2:])
    torch.testing.assert_close(encoder(image)[-1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "module",
    [
        "timm",
        "vitseg_zoo.architectures.segmenter",
        "vitseg_zoo.encoders.pretrained",
        "vitseg_zoo.ops.dispatch",
        "vitseg_zoo.weights.catalog",
    ],
)
def test_any_module_may_be_the_first_import(module: str) -> None:
    code = f"""
import {module}
import segmentation_models_pytorch as smp
assert "vz-vit_tiny_patch16_224" in smp.encoders.encoders and "segmenter" in smp.MODEL_ARCHITECTURES_MAPPING
print("ok")
"""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout == "ok\n", result.stderr


FIXED_GRIDS = ["tiny_beit", "tiny_relpos"]


def ran_at_another_size(name: str) -> tuple[PlainViTEncoder, torch.Tensor]:
    encoder, image = PlainViTEncoder(name).eval(), torch.randn(1, 3, 96, 48)
    with torch.no_grad():
        encoder(image)
    return encoder, image


@pytest.mark.parametrize("name", FIXED_GRIDS)
def test_assigned_weights_count_after_another_size(name: str) -> None:
    encoder, image = ran_at_another_size(name)
    other = PlainViTEncoder(name).eval()
    encoder.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
    with torch.no_grad():
        assert torch.equal(encoder(image)[-1], other(image)[-1])


@pytest.mark.parametrize("name", FIXED_GRIDS)
def test_hooks_count_after_another_size(name: str) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.shapes: list[torch.Size] = []

        def __call__(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            self.shapes.append(output.shape)

        def before(self, module: nn.Module, inputs: tuple) -> None:
            self.shapes.append(inputs[0].shape)

    encoder, image = ran_at_another_size(name)
    recorder, block = Recorder(), encoder.model.blocks[0]
    handles = [
        block.attn.register_forward_hook(recorder),
        block.mlp.register_forward_pre_hook(recorder.before),
    ]
    for size in [(96, 48), (48, 96), (96, 48)]:  # copies made before and after the hooks
        encoder(image.reshape(1, 3, *size))
    assert len(recorder.shapes) == 6
    for handle in handles:
        handle.remove()
    encoder(image)
    assert len(recorder.shapes) == 6


@pytest.mark.parametrize("name", FIXED_GRIDS)
def test_adapters_count_after_another_size(name: str) -> None:
    class LowRank(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.norm = base, nn.BatchNorm1d(base.in_features)
            self.low = nn.Linear(base.in_features, base.out_features, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.low(self.norm(x.transpose(1, 2)).transpose(1, 2))

    encoder, image = ran_at_another_size(name)
    for block in encoder.model.blocks:
        block.mlp.fc1 = LowRank(block.mlp.fc1).eval()
    expected = copy.deepcopy(encoder)(image)[-1]  # which has no copy of the last size
    assert torch.equal(encoder(image)[-1], expected)
    encoder.model.blocks[0].mlp.fc1.train()
    encoder(image)[-1].sum().backward()
    adapter = encoder.model.blocks[0].mlp.fc1
    assert adapter.low.weight.grad.abs().sum() > 0 and adapter.norm.num_batches_tracked == 1


def test_flags_say_which_encoders_compile_and_export_unseen() -> None:
    """SMP's flags hold for a fresh encoder: one with tables for a grid of tokens has to be run first."""
    for name, any_size in (("tiny_vit", True), ("tiny_beit", False), ("tiny_relpos", False)):
        encoder = PlainViTEncoder(name)
        assert encoder._is_torch_compilable is encoder._is_torch_exportable is any_size, name
