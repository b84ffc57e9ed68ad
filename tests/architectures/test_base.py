"""Arguments that the architectures pass on to encoders, and the encoder that stands for none."""

import pytest
import segmentation_models_pytorch as smp
import tiny_vits  # noqa: F401  registers models
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vitseg_zoo


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [
        ("segmenter", "vz-mit_b0"),
        ("segmenter", "vz-tiny_vit"),
        ("fusedsegformer", "vz-mit_b0"),
        ("fusedsegformer", "vz-tiny_vit"),
    ],
)
def test_arguments_reach_the_timm_model(arch: str, encoder: str) -> None:
    model = smp.create_model(arch, encoder, encoder_weights=None, in_channels=4, drop_path_rate=0.9)
    rates = [getattr(module, "drop_prob", 0) for module in model.encoder.modules()]
    assert max(rates) == pytest.approx(0.9)
    assert model.encoder.configured == {"drop_path_rate": 0.9}
    assert model(torch.rand(2, 4, 64, 64)).shape == (2, 1, 64, 64)
    with pytest.raises(TypeError, match="nonsense"):
        smp.create_model(arch, encoder, encoder_weights=None, nonsense=3)


def test_arguments_of_smps_own_encoders_are_smps_affair() -> None:
    smp.create_model("fusedsegformer", "resnet18", encoder_weights=None, drop_path_rate=0.9)
    smp.create_model("segformer", "resnet18", encoder_weights=None, drop_path_rate=0.9)


@pytest.mark.parametrize("arch", ["vitseg", "segmenter", "eomt"])
def test_a_plain_vit_has_blocks_and_no_levels(arch: str) -> None:
    model = smp.create_model(arch, "vz-tiny_vit", encoder_weights=None, encoder_blocks=2)
    assert len(model.encoder.model.blocks) == 2
    with pytest.raises(ValueError, match=r"encoder_depth is a number of levels.*got 5.* is encoder_blocks"):
        smp.create_model(arch, "vz-tiny_vit", encoder_weights=None, encoder_depth=5)
    for wrong in (0, 6):
        with pytest.raises(
            ValueError, match=rf"encoder_blocks of tiny_vit should be in range \[1, 5\], got {wrong}"
        ):
            smp.create_model(arch, "vz-tiny_vit", encoder_weights=None, encoder_blocks=wrong)


def test_an_encoder_with_levels_has_no_number_of_blocks() -> None:
    model = smp.create_model("segmenter", "vz-mit_b0", encoder_weights=None, encoder_depth=3)
    assert model.encoder.output_stride == 8
    with pytest.raises(ValueError, match="encoder_blocks is for plain ViTs"):
        smp.create_model("segmenter", "vz-mit_b0", encoder_weights=None, encoder_blocks=3)
    with pytest.raises(ValueError, match="got 0"):
        smp.create_model("segmenter", "vz-mit_b0", encoder_weights=None, encoder_depth=0)


@pytest.mark.parametrize("arch", ["vitseg", "segmenter", "eomt"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_files_of_0_1_called_blocks_encoder_depth(arch: str, kind: str, tmp_path) -> None:
    model = smp.create_model(arch, "vz-tiny_vit", encoder_weights=None, encoder_blocks=2)
    if kind == "folder":
        model.config["encoder_depth"] = model.config.pop("encoder_blocks")  # as 0.1 wrote them
        model.save_pretrained(tmp_path)
        loaded = smp.from_pretrained(tmp_path)
    else:
        path = vitseg_zoo.save_model(model, tmp_path / "model.safetensors")
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        metadata["vitseg_zoo"] = metadata["vitseg_zoo"].replace('"encoder_blocks"', '"encoder_depth"')
        assert '"encoder_depth": 2' in metadata["vitseg_zoo"]
        save_file(load_file(path), path, metadata)
        loaded, _ = vitseg_zoo.load_model(path)
    assert len(loaded.encoder.model.blocks) == 2
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded.eval()(image), model.eval()(image))


@pytest.mark.parametrize("arch", ["vitseg", "segmenter", "eomt"])
def test_no_encoder_and_no_weights_mean_the_default_with_random_weights(arch: str, tmp_path) -> None:
    model = smp.create_model(arch, encoder_weights=None, classes=5, encoder_blocks=1)
    assert model.config["encoder_name"] == model.default_encoder[0]
    assert model.config["encoder_weights"] is None
    path = vitseg_zoo.save_model(model, tmp_path / "model.safetensors")
    assert vitseg_zoo.load_model(path)[1]["arguments"]["encoder_name"] == model.default_encoder[0]


@pytest.mark.parametrize(
    "arch, encoder", [("vitseg", "vz-vitseg_tiny_patch16_128"), ("segmenter", "vz-tiny_vit")]
)
def test_a_refinement_starts_as_nothing_and_is_saved_and_predicted_with(arch, encoder, tmp_path) -> None:
    model = smp.create_model(arch, encoder, None, classes=3, decoder_refinement=True).eval()
    plain = smp.create_model(arch, encoder, None, classes=3).eval()
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("refinement.")}
    plain.load_state_dict(weights)
    image = torch.rand(1, 3, 50, 70)
    with torch.no_grad():
        logits = F.avg_pool2d(plain(image), 4, ceil_mode=True)
        for size in ((25, 35), (50, 70)):  # what is left of the logits without a correction
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(image), logits)
        for correction in model.refinement.corrections:
            torch.nn.init.normal_(correction[-1].weight)
        refined = model(image)
        assert not torch.equal(refined, logits)
        assert torch.equal(vitseg_zoo.predict_labels(model, image), refined.argmax(1))
        loaded, _ = vitseg_zoo.load_model(vitseg_zoo.save_model(model, tmp_path / "model.safetensors"))
        assert torch.equal(loaded.eval()(image), refined)


def test_an_activation_comes_behind_the_refinement() -> None:
    options = dict(encoder_weights=None, classes=1, decoder_refinement=True, activation="sigmoid")
    model = smp.create_model("vitseg", "vz-vitseg_tiny_patch16_128", **options).eval()
    torch.nn.init.constant_(model.refinement.corrections[-1][-1].bias, -100.0)
    assert 0 <= model(torch.rand(1, 3, 32, 32)).max() < 1e-6
