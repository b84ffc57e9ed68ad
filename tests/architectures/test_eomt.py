"""EoMT and its loss against references written out by hand, masked attention, and SMP's habits."""

import itertools

import pytest
import segmentation_models_pytorch as smp
import tiny_vits  # noqa: F401  registers models
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch._subclasses.fake_tensor import FakeTensorMode

import vitseg_zoo
from vitseg_zoo.decoders.eomt import QueryPrediction, SemanticHead, query_attention_mask


def eomt(name: str = "tiny_vit", **kwargs) -> torch.nn.Module:
    return smp.create_model("eomt", f"vz-{name}", None, **{"classes": 3, "num_queries": 6, **kwargs})


def reference_prediction(model: torch.nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """EoMT on a timm `VisionTransformer` of width 64 without masked attention, in plain tensor operations."""
    vit, decoder = model.encoder.model, model.decoder
    tokens = F.conv2d(image, vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, stride=16)
    height, width = tokens.shape[2:]
    tokens = tokens.flatten(2).transpose(1, 2) + vit.pos_embed  # no_embed_class: patches only
    batch = len(image)
    prefix = torch.cat([vit.cls_token, vit.reg_token], dim=1).expand(batch, -1, -1)
    tokens = torch.cat([prefix, tokens], dim=1)
    for index, block in enumerate(vit.blocks):
        if index == len(vit.blocks) - 2:
            tokens = torch.cat([tokens, decoder.queries.expand(batch, -1, -1)], dim=1)
        qkv = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].transpose(-1, -2) / 32**0.5).softmax(-1)
        tokens = tokens + block.attn.proj((weights @ qkv[2]).transpose(1, 2).flatten(2))
        tokens = tokens + block.mlp(block.norm2(tokens))
    tokens = vit.norm(tokens)
    queries, patches = tokens[:, -6:], tokens[:, 3:-6].transpose(1, 2).unflatten(2, (height, width))
    for up in decoder.upscale:
        patches = F.gelu(F.conv_transpose2d(patches, up[0].weight, up[0].bias, stride=2))
        patches = F.conv2d(patches, up[2].weight, padding=1, groups=64).permute(0, 2, 3, 1)
        patches = F.layer_norm(patches, (64,), up[3].weight, up[3].bias, eps=1e-6).permute(0, 3, 1, 2)
    hidden = queries
    for index in (0, 2, 4):
        hidden = F.gelu(hidden) if index else hidden
        hidden = F.linear(hidden, decoder.mask_head[index].weight, decoder.mask_head[index].bias)
    masks = torch.stack([(hidden[:, q, :, None, None] * patches).sum(1) for q in range(6)], dim=1)
    return masks, F.linear(queries, decoder.class_head.weight, decoder.class_head.bias)


def test_prediction_is_the_papers() -> None:
    model = eomt(query_blocks=2).double().eval()
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    (prediction,) = model(image, return_queries=True)
    masks, classes = reference_prediction(model, image)
    assert prediction.mask_logits.shape == (2, 6, 16, 16)  # stride 4
    torch.testing.assert_close(prediction.mask_logits, masks, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(prediction.class_logits, classes, atol=1e-10, rtol=1e-10)


def test_queries_among_rotated_tokens_are_not_rotated() -> None:
    # The order of tokens does not matter to attention: queries as prefix tokens, which timm leaves unrotated.
    model = eomt("tiny_dinov3", query_blocks=2).double().eval()
    image = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    (prediction,) = model(image, return_queries=True)
    vit = model.encoder.model
    tokens, rope = vit._pos_embed(vit.patch_embed(image))
    for index, block in enumerate(vit.blocks):
        if index == len(vit.blocks) - 2:
            tokens = torch.cat([model.decoder.queries, tokens], dim=1)
        if index >= len(vit.blocks) - 2:
            block.attn.num_prefix_tokens += 6
        tokens = block(tokens, rope=rope)
    expected = model.decoder.class_head(vit.norm(tokens)[:, :6])
    torch.testing.assert_close(prediction.class_logits, expected, atol=1e-10, rtol=1e-10)


def test_attention_mask() -> None:
    logits = torch.full((1, 3, 4, 4), -1.0)
    logits[0, 0, :2] = 1.0  # the upper two of four patches
    logits[0, 1] = 1.0  # everywhere; query 2 nowhere
    mask = query_attention_mask(logits, grid=(2, 2), num_prefix_tokens=1)[0, 0]
    assert mask.shape == (8, 8)
    assert mask[:5].all()  # class token and patches attend to everything
    assert mask[5].tolist() == [True, True, True, False, False, True, True, True]
    assert mask[6:].all()


def test_mask_annealing_goes_block_by_block_and_ends_without_masks() -> None:
    model = eomt("tiny_vit", query_blocks=3)
    assert len(model(torch.randn(1, 3, 64, 64), return_queries=True)) == 1
    history = []
    for step in range(11):
        model.anneal_masks(step / 10)
        history.append(model.mask_probabilities)
    assert history[0] == [1, 1, 1] and history[10] == [0, 0, 0]
    for before, after in itertools.pairwise(history):
        assert all(a <= b for a, b in zip(after, before, strict=True))
        assert after[0] <= after[1] <= after[2]
    assert history[5][0] == 0 and 0 < history[5][1] < 1 and history[5][2] == 1
    model.anneal_masks(0.0)
    assert len(model(torch.randn(1, 3, 64, 64), return_queries=True)) == 4


def test_masked_attention_hides_patches_from_queries_only() -> None:
    model = eomt(query_blocks=1).eval()
    with torch.no_grad():
        model.decoder.mask_head[-1].weight.normal_(std=1.0)  # masks with both signs
        image = torch.randn(1, 3, 64, 64)
        (free,) = model(image, return_queries=True)
        model.anneal_masks(0.0)
        _, masked = model(image, return_queries=True)
        assert not torch.allclose(free.class_logits, masked.class_logits)
        model.anneal_masks(1.0)
        (annealed,) = model(image, return_queries=True)
    torch.testing.assert_close(annealed.class_logits, free.class_logits)


def test_semantic_inference() -> None:
    classes = torch.randn(2, 4, 3 + 1)
    masks = torch.randn(2, 4, 5, 6)
    logits = SemanticHead()(QueryPrediction(masks, classes, (5, 6)))
    scores = torch.zeros(2, 3, 5, 6)
    for query, label in itertools.product(range(4), range(3)):
        probability = classes[:, query].exp()[:, label] / classes[:, query].exp().sum(-1)
        scores[:, label] += probability[:, None, None] * masks[:, query].sigmoid()
    torch.testing.assert_close(logits.exp(), scores)
    torch.testing.assert_close(logits.softmax(1), scores / scores.sum(1, keepdim=True))
    one = SemanticHead()(QueryPrediction(masks[:, :1], classes[:, :1, :2], (5, 6)))
    score = classes[:, :1, :2].softmax(-1)[..., :1, None] * masks[:, :1].sigmoid()
    torch.testing.assert_close(one.sigmoid(), score)


def reference_loss(
    prediction: QueryPrediction, target: torch.Tensor, classes: int, ignore_index: int
) -> float:
    """Mask2Former's loss over all pixels, one pair of query and class at a time."""
    wanted = [[label for label in range(classes) if (labels == label).any()] for labels in target]
    masks_loss, class_terms, class_weights = 0.0, 0.0, 0.0
    for mask_logits, class_logits, labels, present in zip(
        prediction.mask_logits, prediction.class_logits, target, wanted, strict=True
    ):
        counts = labels != ignore_index

        def pair_losses(query: int, label: int) -> float:
            logits, truth = mask_logits[query][counts], (labels[counts] == label).to(mask_logits)  # noqa: B023
            cross_entropy = F.binary_cross_entropy_with_logits(logits, truth)
            dice = 1 - (2 * (logits.sigmoid() * truth).sum() + 1) / (logits.sigmoid().sum() + truth.sum() + 1)
            return float(5 * cross_entropy + 5 * dice)

        probability = class_logits.softmax(-1)
        cost = [[pair_losses(q, k) - 2 * float(probability[q, k]) for k in present] for q in range(5)]
        queries, order = linear_sum_assignment(cost)
        matched = dict(zip(queries.tolist(), order.tolist(), strict=True))
        best = min(
            sum(cost[q][k] for k, q in enumerate(choice))
            for choice in itertools.permutations(range(len(cost)), len(present))
        )
        assert sum(cost[q][k] for q, k in matched.items()) == pytest.approx(best)
        masks_loss += sum(pair_losses(q, present[k]) for q, k in matched.items())
        for query, logits in enumerate(class_logits):
            label = present[matched[query]] if query in matched else classes
            weight = 1.0 if query in matched else 0.1
            class_terms -= weight * float(logits.log_softmax(-1)[label])
            class_weights += weight
    return masks_loss / sum(map(len, wanted)) + 2 * class_terms / class_weights


def test_loss_is_mask2formers() -> None:
    prediction = QueryPrediction(
        torch.randn(2, 5, 6, 7, dtype=torch.float64), torch.randn(2, 5, 5, dtype=torch.float64), (6, 7)
    )
    target = torch.randint(0, 4, (2, 6, 7))
    target[0, 0] = 255
    target[1][target[1] == 2] = 0  # not every class in every image
    loss = vitseg_zoo.QueryLoss(classes=4, ignore_index=255, num_points=None)
    expected = reference_loss(prediction, target, classes=4, ignore_index=255)
    assert float(loss([prediction], target)) == pytest.approx(expected, rel=1e-5)
    assert float(loss([prediction, prediction], target)) == pytest.approx(2 * expected, rel=1e-5)


def test_sampled_loss_tends_to_that_of_all_pixels() -> None:
    masks = F.interpolate(torch.randn(1, 3, 4, 4), size=32, mode="bilinear")
    prediction = QueryPrediction(masks, torch.randn(1, 3, 3), (32, 32))
    target = (torch.arange(32) >= 16).long().expand(1, 32, 32)
    args = dict(classes=2, importance_sample_ratio=0.0)
    dense = vitseg_zoo.QueryLoss(**args, num_points=None)([prediction], target)
    sampled = vitseg_zoo.QueryLoss(**args, num_points=20000)([prediction], target)
    torch.testing.assert_close(sampled, dense, rtol=0.03, atol=0)
    # Uncertain points, where logits are small, have a larger loss than the average point.
    uncertain = vitseg_zoo.QueryLoss(classes=2, num_points=2000, dice_weight=0.0, class_weight=0.0)
    points = uncertain._loss_points(masks[0])
    sampled = F.grid_sample(masks[0][:, None], 2 * points[:, None] - 1, align_corners=False)
    assert sampled.abs().mean() < 0.8 * masks.abs().mean()


def test_padding_and_ignored_pixels_do_not_count() -> None:
    loss = vitseg_zoo.QueryLoss(classes=2, ignore_index=9, num_points=None)
    masks, classes = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 3)
    target = torch.randint(0, 2, (1, 8, 6))  # the prediction is of an image padded by two columns
    target[:, :3] = 9
    value = loss([QueryPrediction(masks, classes, (8, 8))], target)
    changed = masks.clone()
    changed[..., 6:] = 50.0
    changed[..., :3, :] = -50.0
    torch.testing.assert_close(loss([QueryPrediction(changed, classes, (8, 8))], target), value)
    nothing = loss([QueryPrediction(masks, classes, (8, 8))], torch.full_like(target, 9))
    torch.testing.assert_close(nothing, 2 * F.cross_entropy(classes[0], torch.full((4,), 2)))


def test_labels_out_of_range() -> None:
    loss = vitseg_zoo.QueryLoss(classes=2)
    prediction = QueryPrediction(torch.randn(1, 4, 8, 8), torch.randn(1, 4, 3), (8, 8))
    with pytest.raises(ValueError, match=r"Labels should lie in \[0, 1\].*got \[0, 255\]"):
        loss([prediction], torch.tensor([0, 255]).repeat(1, 8, 4))
    with pytest.raises(ValueError, match="Masks for one class should hold 0 and 1"):
        binary = QueryPrediction(torch.randn(1, 4, 8, 8), torch.randn(1, 4, 2), (8, 8))
        vitseg_zoo.QueryLoss(classes=1)([binary], torch.full((1, 8, 8), 2))


@pytest.mark.parametrize("classes", [1, 3])
def test_learns_with_its_own_loss(classes: int) -> None:
    model = eomt("tiny_vit", classes=classes, num_queries=4, query_blocks=2).train()
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    target[:, :, 32:] = 1
    if classes == 3:
        target[:, 48:] = 2
    image = torch.randn(2, 3, 64, 64) + target[:, None]
    loss = vitseg_zoo.QueryLoss(classes=classes, num_points=300)
    optimizer = torch.optim.AdamW(vitseg_zoo.parameter_groups(model, 1e-3, layer_decay=1.0))
    for step in range(60):
        model.anneal_masks(step / 50)
        value = loss(model(image, return_queries=True), target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    logits = model.eval()(image)
    labels = logits.argmax(1) if classes > 1 else (logits[:, 0] > 0).long()
    assert (labels == target).float().mean() > 0.9


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_eva", "tiny_dinov3"])
def test_any_size_any_channels(name: str) -> None:
    model = eomt(name, in_channels=4, aux_params=dict(classes=2), drop_path_rate=0.1)
    model.encoder.set_grad_checkpointing(True)
    model.anneal_masks(0.0)
    for height, width in [(64, 96), (50, 33)]:
        masks, labels = model(torch.randn(2, 4, height, width))
        assert masks.shape == (2, 3, height, width)
        assert labels.shape == (2, 2)
    (masks.mean() + labels.mean()).backward()
    assert model.decoder.queries.grad.abs().sum() > 0


def test_masked_attention_runs_on_a_gpu() -> None:
    model = eomt("tiny_vit").eval()
    model.anneal_masks(0.0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = {key: torch.empty_like(t, device="cuda") for key, t in model.state_dict().items()}
        output = torch.func.functional_call(model, state, torch.rand(2, 3, 64, 96, device="cuda"))
    assert output.device.type == "cuda" and output.shape == (2, 3, 64, 96)


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="vz-tiny_beit has no place for queries"):
        eomt("tiny_beit")
    with pytest.raises(ValueError, match=r"query_blocks should lie in \[1, 5\].*got 6"):
        eomt("tiny_vit", query_blocks=6)


def test_hooks_on_the_encoder_are_called() -> None:
    model = smp.create_model("eomt", "vz-vit_tiny_patch16_224", encoder_weights=None, classes=3).eval()
    calls: list[int] = []
    model.encoder.register_forward_hook(lambda *args: calls.append(1))
    model(torch.rand(1, 3, 32, 32))
    assert calls == [1]
