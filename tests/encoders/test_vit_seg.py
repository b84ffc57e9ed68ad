"""ViT-seg: the article's numbers, a reference written from its text, and what compilers make of it."""

import pytest
import segmentation_models_pytorch as smp
import torch
from small_vit_seg import SMALL_ARGS, small
from torch import nn
from vit_seg_reference import ReferenceViTSeg


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
