"""Segmenter: its mask transformer against the paper's equations written out, and SMP's habits."""

import math

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from tiny_vits import FAMILIES

from vitseg_zoo.decoders.segmenter import MaskTransformerDecoder


def reference_masks(
    weights: dict[str, torch.Tensor], patches: torch.Tensor, num_heads: int, depth: int
) -> torch.Tensor:
    """The mask transformer for one image's patches (N, D), token by token; scores (K, N)."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + eps)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    num_patches, channels = patches.shape
    tokens = torch.cat([linear("proj_in", patches), weights["class_tokens"][0]])
    for block in range(depth):
        queries, keys, values = linear(
            f"blocks.{block}.attn.qkv", norm(f"blocks.{block}.norm1", tokens, 1e-6)
        ).chunk(3, -1)
        mixed = []
        for head in range(num_heads):
            part = slice(head * channels // num_heads, (head + 1) * channels // num_heads)
            weight = queries[:, part] @ keys[:, part].T / math.sqrt(channels // num_heads)
            mixed.append(torch.exp(weight) / torch.exp(weight).sum(-1, keepdim=True) @ values[:, part])
        tokens = tokens + linear(f"blocks.{block}.attn.proj", torch.cat(mixed, -1))
        hidden = linear(f"blocks.{block}.mlp.fc1", norm(f"blocks.{block}.norm2", tokens, 1e-6))
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens = tokens + linear(f"blocks.{block}.mlp.fc2", hidden)
    tokens = norm("norm", tokens, 1e-5)
    scores = torch.empty(len(tokens) - num_patches, num_patches, dtype=patches.dtype)
    for k, class_token in enumerate(tokens[num_patches:] @ weights["proj_class"]):
        for n, patch in enumerate(tokens[:num_patches] @ weights["proj_patch"]):
            scores[k, n] = patch @ class_token / (patch.norm() * class_token.norm())  # the cosine
    return norm("mask_norm", scores.T, 1e-5).T


def test_mask_transformer_is_the_papers() -> None:
    decoder = MaskTransformerDecoder(channels=24, classes=5, depth=2, num_heads=3).double().eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    feature = torch.randn(2, 24, 3, 4, dtype=torch.float64)
    actual = decoder([feature])
    for image in range(2):
        expected = reference_masks(decoder.state_dict(), feature[image].flatten(1).T, num_heads=3, depth=2)
        torch.testing.assert_close(actual[image].flatten(1), expected, atol=1e-10, rtol=1e-10)


def test_linear_head_scores_each_patch_and_is_upsampled() -> None:
    model = smp.create_model("segmenter", "vz-tiny_vit", None, classes=3, decoder_head="linear").eval()
    image = torch.randn(1, 3, 64, 96)
    feature = model.encoder(image)[-1]
    scores = torch.einsum("bdhw,kd->bkhw", feature, model.decoder.weight[:, :, 0, 0])
    scores = scores + model.decoder.bias[:, None, None]
    torch.testing.assert_close(
        model(image), F.interpolate(scores, size=(64, 96), mode="bilinear"), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("decoder_head", ["mask", "linear"])
def test_any_vit_any_size_any_channels(name: str, decoder_head: str) -> None:
    model = smp.create_model(
        "segmenter",
        f"vz-{name}",
        None,
        in_channels=4,
        classes=2,
        decoder_head=decoder_head,
        aux_params=dict(classes=3),
    )
    for height, width in [(64, 96), (50, 33)]:
        masks, labels = model(torch.randn(2, 4, height, width))
        assert masks.shape == (2, 2, height, width)
        assert labels.shape == (2, 3)


def test_learns_a_single_class() -> None:
    model = smp.create_model("segmenter", "vz-tiny_vit", None, classes=1, decoder_depth=1).train()
    image = torch.randn(2, 3, 64, 64)
    target = torch.zeros(2, 1, 64, 64)
    target[..., 32:] = 1
    image[..., 32:] += 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(40):
        loss = F.binary_cross_entropy_with_logits(model(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.25  # knowing nothing is 0.69
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="decoder_head should be 'mask' or 'linear', got 'fpn'"):
        smp.create_model("segmenter", "vz-tiny_vit", None, decoder_head="fpn")
    with pytest.raises(ValueError, match="64 channels cannot be divided among 5 heads"):
        smp.create_model("segmenter", "vz-tiny_vit", None, decoder_num_heads=5)
    with pytest.raises(ValueError, match="not an encoder of the zoo"):
        smp.create_model("segmenter", "resnet18", None)
