"""The fused head in strips against SMP's own decoder and classifier: outputs, statistics, all gradients."""

import copy
from unittest.mock import patch

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from torch import nn

from vitseg_zoo.decoders.segformer import FusedSegformerDecoder
from vitseg_zoo.ops import segformer_head
from vitseg_zoo.ops.segformer_head import add_resampled

CHANNELS = [3, 6, 8, 10, 12, 14]


def levels(height: int, width: int) -> list[torch.Tensor]:
    sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(len(CHANNELS))]
    return [
        torch.randn(3, c, h, w, dtype=torch.float64, requires_grad=True)
        for c, (h, w) in zip(CHANNELS, sizes, strict=True)
    ]


def pair() -> tuple[SegformerDecoder, nn.Conv2d, FusedSegformerDecoder, nn.Conv2d]:
    peer, classifier = SegformerDecoder(CHANNELS, 5, 16).double(), nn.Conv2d(16, 5, 1).double()
    nn.init.normal_(peer.fuse_stage[1].weight)
    nn.init.normal_(peer.fuse_stage[1].bias)
    fused = FusedSegformerDecoder(CHANNELS, 5, 16).double()
    fused.load_state_dict(peer.state_dict())
    return peer, classifier, fused, copy.deepcopy(classifier)


@pytest.mark.parametrize("elements", [1, 16 * 24 * 7, 2**20])
@pytest.mark.parametrize("size", [(64, 96), (60, 100), (8, 4)])
def test_training_equals_smp(elements: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segformer_head, "_STRIP_ELEMENTS", elements)
    peer, classifier, fused, fused_classifier = pair()
    features = levels(*size)
    expected = classifier(peer(features))
    weight = torch.randn_like(expected)
    parameters = [*peer.parameters(), *classifier.parameters()]
    gradients = torch.autograd.grad((expected * weight).sum(), [*features[1:], *parameters])

    actual = fused(features, fused_classifier)
    assert ("ClassifiedHead" in type(actual.grad_fn).__name__) == (min(size) > 4)  # more than one row, column
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    parameters = [*fused.parameters(), *fused_classifier.parameters()]
    own = torch.autograd.grad((actual * weight).sum(), [*features[1:], *parameters])
    torch.testing.assert_close(own, gradients, rtol=1e-8, atol=1e-8)
    for (name, b), c in zip(peer.named_buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(c, b, rtol=0, atol=1e-12, msg=name)

    peer.eval(), fused.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            fused(features, fused_classifier), classifier(peer(features)), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_running_statistics_move_as_torchs(momentum: float | None) -> None:
    peer, _, fused, fused_classifier = pair()
    peer.fuse_stage[1].momentum = fused.fuse_stage[1].momentum = momentum
    for _ in range(3):
        features = levels(32, 64)
        peer(features), fused(features, fused_classifier)
    for b, c in zip(peer.buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(c, b, rtol=0, atol=1e-12)


def test_a_channel_whose_norm_has_no_weight_trains() -> None:
    peer, classifier, fused, fused_classifier = pair()
    for decoder in (peer, fused):
        nn.init.zeros_(decoder.fuse_stage[1].weight)
        nn.init.ones_(decoder.fuse_stage[1].bias)
    features = levels(32, 32)
    gradients = []
    for output, module in ((classifier(peer(features)), peer), (fused(features, fused_classifier), fused)):
        gradients.append(torch.autograd.grad(output.square().sum(), module.fuse_stage[1].weight)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-10)


def test_one_value_a_channel_is_refused_as_by_torch() -> None:
    _, _, fused, classifier = pair()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused([f[:1] for f in levels(4, 4)], classifier)


def test_one_product_resamples_and_adds_all_levels() -> None:
    output = torch.rand(2, 8, 16, 32, dtype=torch.float64)
    maps = [
        torch.rand(2, 8, *size, dtype=torch.float64, requires_grad=True) for size in ((8, 16), (5, 7), (2, 4))
    ]
    like = torch.rand_like(output)
    expected = output + sum(F.interpolate(x, (16, 32), mode="bilinear") for x in maps)
    grads = torch.autograd.grad((expected * like).sum(), maps)
    found = add_resampled(output.contiguous(memory_format=torch.channels_last), maps)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * like).sum(), maps), grads)


@pytest.mark.parametrize("training", [False, True])
def test_a_gpus_form_is_the_plain_one(training: bool) -> None:
    model = smp.create_model("fusedsegformer", "vz-mit_b0", encoder_weights=None, classes=5).double()
    model.train(training)
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    image = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    runs = []
    for form in (False, True):
        with (
            patch.object(segformer_head, "runs_eagerly_on_gpu", return_value=form) as asked,
            patch.object(segformer_head, "runs_eagerly_on_cpu", return_value=False),
        ):
            logits = model(image)
        assert asked.called
        runs.append((logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()))))
    torch.testing.assert_close(*runs, rtol=1e-10, atol=1e-12)
