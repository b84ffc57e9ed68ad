"""ViTs with eyes for detail: the path beside any ViT, and the stem in front of the article's."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from tiny_vits import FAMILIES

HYBRID = "vz-vitseg_hybrid_tiny_patch16_128"
DETAIL = "vz-detail-vitseg_tiny_patch16_128"


def encoder(name: str, **kwargs) -> torch.nn.Module:
    return smp.encoders.get_encoder(name, weights=None, **kwargs).eval()


@pytest.mark.parametrize("name", [HYBRID, DETAIL, *(f"vz-detail-{family}" for family in FAMILIES)])
@pytest.mark.parametrize("depth, output_stride", [(5, 32), (3, 32), (1, 32), (5, 8)])
def test_levels_have_the_shapes_that_are_promised(name, depth, output_stride) -> None:
    model = encoder(name, depth=depth, output_stride=output_stride, in_channels=4)
    with torch.no_grad():
        levels = model(torch.rand(2, 4, 75, 97))
    assert [level.shape[1] for level in levels] == list(model.out_channels)
    strides = [min(2**level, output_stride) for level in range(depth + 1)]
    assert [tuple(level.shape[2:]) for level in levels] == [(-(-75 // s), -(-97 // s)) for s in strides]


@pytest.mark.parametrize(
    "name, sees", [(HYBRID, True), (DETAIL, True), ("vz-vitseg_tiny_patch16_128", False)]
)
def test_fine_levels_tell_pixels_of_a_patch_apart(name, sees) -> None:
    """Two images that a patch embedding cannot tell apart: its weights do not see the difference."""
    torch.manual_seed(0)
    model = encoder(name)
    if not sees or name == DETAIL:
        # Patches whose projection is the mean: it sees no stripes.
        torch.nn.init.constant_(model.model.patch_embed.proj.weight, 1 / 256)
    image = torch.full((1, 3, 64, 64), 0.5)
    stripes = image + 0.25 * torch.tensor([1.0, -1.0]).repeat(32)
    with torch.no_grad():
        difference = (model(image)[1] - model(stripes)[1]).abs().max()
    assert (difference > 1e-3) == sees


@pytest.mark.parametrize("name", [HYBRID, DETAIL])
def test_gray_images_give_what_three_equal_channels_gave(name) -> None:
    torch.manual_seed(0)
    model = encoder(name)
    gray = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = model(gray.expand(1, 3, 64, 64))
        model.set_in_channels(1, pretrained=True)
        for level, wanted in zip(model(gray)[1:], expected[1:], strict=True):
            torch.testing.assert_close(level, wanted, rtol=1e-4, atol=1e-5)


def test_the_path_trains_beside_a_frozen_vit() -> None:
    model = smp.Unet("vz-detail-vit_tiny_patch16_224", encoder_weights=None, classes=2)
    model.encoder.model.requires_grad_(False)
    model.train()(torch.rand(2, 3, 64, 64)).mean().backward()
    assert all(p.grad is None for p in model.encoder.model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.encoder.path.parameters())


def test_a_hybrid_is_one_network_for_timm_for_smp_and_for_heads_on_tokens() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 96, 64)
    model = timm.create_model("vitseg_hybrid_tiny_patch16_128", num_classes=5).eval()
    features = timm.create_model("vitseg_hybrid_tiny_patch16_128", features_only=True).eval()
    features.model.load_state_dict(model.state_dict(), strict=False)
    assert features.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert model(image).shape == (2, 5)
    smp_encoder = encoder(HYBRID)
    smp_encoder.model.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        maps = features(image)
        levels = smp_encoder(image)[1:]
        (tokens,) = model.forward_intermediates(image, indices=1, intermediates_only=True)
    torch.testing.assert_close(maps[3], tokens)
    for level, wanted in zip(levels, maps, strict=True):
        if level.shape[2] > 6:  # coarser ones read other blocks than the last
            torch.testing.assert_close(level, wanted)
    torch.testing.assert_close(levels[4], maps[4])
    head = smp.create_model("vitseg", HYBRID, encoder_weights=None, classes=2)
    assert head(image).shape == (2, 2, 96, 64)


def test_patches_of_a_hybrid_have_one_size() -> None:
    with pytest.raises(ValueError, match="patch_size should be 16"):
        timm.create_model("vitseg_hybrid_tiny_patch16_128", patch_size=8)
