"""The architecture `fusedsegformer` against `smp.Segformer` of the same weights."""

import copy
import inspect
import pickle
from collections.abc import Iterator

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vitseg_zoo.decoders import segformer
from vitseg_zoo.encoders.mix_checkpoints import convert_to_smp

# Encoder, number of its levels, image size. With 32 x 32 the last level is a single pixel.
CASES = [
    ("resnet18", 5, (32, 64)),
    ("resnet18", 4, (48, 32)),
    ("resnet18", 3, (40, 56)),
    ("mit_b0", 5, (32, 32)),
    ("vz-mit_b0", 5, (32, 32)),
    ("vz-mit_b0", 5, (64, 96)),
    ("vz-mit_b0", 4, (48, 80)),
    ("vz-mit_b0", 3, (40, 56)),
    ("vz-vitseg_tiny_patch16_128", 5, (64, 32)),
]


def pair(encoder: str, depth: int = 5, fused: dict | None = None, **kwargs) -> tuple[nn.Module, nn.Module]:
    """`smp.Segformer` and the fused one with its weights, in float64, without random numbers in the encoder.

    Over `vz-mit_*` the original is that of SMP's encoder, whose head has the paper's four levels.
    """
    arguments = dict(encoder_depth=depth, encoder_weights=None, decoder_segmentation_channels=48, classes=7)
    arguments.update(kwargs)
    peer = smp.Segformer(encoder.removeprefix("vz-") if "mit" in encoder else encoder, **arguments)
    own = smp.FusedSegformer(encoder, **arguments, **(fused or {}))
    for module in peer.modules():  # statistics and biases that a mistake would show
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(module.bias, std=0.1)
    own.load_state_dict(peer.state_dict())
    return without_chance(peer.double()), without_chance(own.double())


def without_chance(model: nn.Module) -> nn.Module:
    """Switches off what is drawn at random in the encoder."""
    for module in model.encoder.modules():
        for rate in ("p", "drop_prob"):
            if hasattr(module, rate):
                setattr(module, rate, 0.0)
    return model


def image(model: nn.Module, *size: int) -> torch.Tensor:
    return torch.randn(2, model.encoder.out_channels[0], *size, dtype=torch.float64)


def smp_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return convert_to_smp(tensors) if any(".model.stages." in key for key in tensors) else dict(tensors)


def assert_close(actual, expected, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def assert_same_gradients(own: nn.Module, peer: nn.Module) -> None:
    gradients, expected = (
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None} for model in (own, peer)
    )
    assert_close(smp_names(gradients), expected)


def assert_same_outputs(own: nn.Module, x: torch.Tensor) -> None:
    """Compares with a new `smp.Segformer` of the weights that `own` has at this moment."""
    peer = smp.Segformer("mit_b0", encoder_weights=None, decoder_segmentation_channels=48, classes=7)
    without_chance(peer).to(x).train(own.training).load_state_dict(smp_names(own.state_dict()))
    with torch.no_grad():
        assert_close(own(x), peer(x), 1e-10 if x.dtype is torch.float64 else 1e-4)


@pytest.mark.parametrize(("encoder", "depth", "size"), CASES)
def test_outputs_statistics_and_gradients(
    encoder: str, depth: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused_head, calls = segformer.fused_head, []
    monkeypatch.setattr(segformer, "fused_head", lambda **parts: calls.append(1) or fused_head(**parts))
    peer, own = pair(encoder, depth)
    x = image(own, *size)
    with torch.no_grad():
        assert_close(own.eval()(x), peer.eval()(x))
    assert_close(own(x), peer(x))  # with gradients, which takes another way
    weights = torch.randn_like(peer(x)).detach()
    for model in (peer, own):
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (model(x) * weights).mean().backward()
            optimizer.step()
    # At a smaller depth SMP's MiT keeps the stages that it does not use.
    kept = smp_names(own.state_dict())
    assert_close(kept, {key: value for key, value in peer.state_dict().items() if key in kept})
    assert_same_gradients(own, peer)
    with torch.no_grad():
        assert_close(own.eval()(x), peer.eval()(x))
    assert len(calls) == 5  # the fast form each time


@pytest.mark.parametrize(("encoder", "size"), [("resnet18", (33, 47)), ("vz-mit_b0", (70, 41))])
def test_odd_sizes(encoder: str, size: tuple[int, int]) -> None:
    """The heads take them, once SMP's check of the size is switched off."""
    peer, own = pair(encoder)
    peer.requires_divisible_input_shape = own.requires_divisible_input_shape = False
    x = image(own, *size)
    for training in (False, True):
        for model in (peer.train(training), own.train(training)):
            model.zero_grad()
            model(x).square().mean().backward()
        assert_close(own(x), peer(x))
        assert_same_gradients(own, peer)


@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0", "vz-vitseg_tiny_patch16_128"])
def test_weights_go_both_ways(encoder: str) -> None:
    arguments = dict(encoder_weights=None, decoder_segmentation_channels=32, classes=3)
    peer, own = (cls(encoder, **arguments).eval() for cls in (smp.Segformer, smp.FusedSegformer))
    assert {k: v.shape for k, v in own.state_dict().items()} == {
        k: v.shape for k, v in peer.state_dict().items()
    }
    x = torch.rand(1, 3, 64, 64)
    for source, target in ((peer, own), (own, smp.Segformer(encoder, **arguments).eval())):
        target.load_state_dict(source.state_dict())
        with torch.no_grad():
            assert_close(target(x), source(x), 1e-4)


def test_zoo_encoder_has_the_papers_four_levels_and_goes_back_to_smp() -> None:
    peer, own = pair("vz-mit_b0")
    assert len(own.decoder.mlp_stage) == 4
    back = smp.Segformer("mit_b0", encoder_weights=None, decoder_segmentation_channels=48, classes=7)
    back.load_state_dict(convert_to_smp(own.state_dict()))
    x = image(own, 64, 32)
    with torch.no_grad():
        assert_close(back.double().eval()(x), peer.eval()(x), 0)


def test_takes_the_arguments_of_smp_segformer() -> None:
    theirs = inspect.signature(smp.Segformer.__init__).parameters
    ours = inspect.signature(smp.FusedSegformer.__init__).parameters
    names = [name for name in theirs if name != "kwargs"]
    assert list(ours)[: len(names)] == names  # in their order, so that positions mean the same
    assert all(ours[name].default == theirs[name].default for name in names)
    peer, own = pair("resnet18", in_channels=4, activation="sigmoid", upsampling=2)
    x = image(own, 32, 64)
    with torch.no_grad():
        assert_close(own.eval()(x), peer.eval()(x))
    assert own.eval()(x).shape == (2, 7, 16, 32)


def test_logits_upsampled_as_hugging_face_does() -> None:
    peer, own = pair("vz-mit_b0", fused={"align_corners": False})
    x = image(own, 64, 96)
    with torch.no_grad():
        logits = peer.segmentation_head[0](peer.decoder(peer.eval().encoder(x)))
        expected = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
        assert_close(own.eval()(x), expected)


def test_dropout_of_channels_before_the_classifier() -> None:
    peer, own = pair("vz-mit_b0", fused={"decoder_dropout": 0.5})
    x = image(own, 64, 96)
    outputs = []
    for forward in (
        own,
        lambda x: peer.segmentation_head(F.dropout2d(peer.decoder(peer.encoder(x)), 0.5)),
    ):
        torch.manual_seed(0)
        outputs.append(forward(x))
        outputs[-1].square().mean().backward()
    assert_close(*outputs)
    assert_same_gradients(own, peer)
    with torch.no_grad():
        assert_close(own.eval()(x), peer.eval()(x))


def test_auxiliary_head() -> None:
    peer, own = pair("vz-mit_b0", aux_params={"classes": 4, "pooling": "max", "activation": "sigmoid"})
    x = image(own, 64, 64)
    for model in (peer.eval(), own.eval()):
        model.zero_grad()
    (masks, labels), (expected_masks, expected_labels) = own(x), peer(x)
    assert_close(masks, expected_masks)
    assert_close(labels, expected_labels)


def test_hooks_on_the_head_are_called() -> None:
    own = pair("resnet18")[1].eval()
    x = image(own, 32, 64)
    with torch.no_grad():
        expected, seen = own(x), []
        hook = own.segmentation_head.register_forward_hook(lambda *args: seen.append(args[2]))
        assert_close(own(x), expected)
        hook.remove()
        assert_close(own(x), expected)
    assert len(seen) == 1
    assert_close(seen[0], expected)


@pytest.mark.parametrize("kernel", [1, 3])
def test_head_of_ones_own(kernel: int) -> None:
    peer, own = pair("resnet18")
    x = image(own, 32, 64)
    conv = nn.Conv2d(48, 5, kernel, padding=kernel // 2).double()
    for head in (conv, smp.base.SegmentationHead(48, 5, kernel, upsampling=2).double()):
        peer.segmentation_head = own.segmentation_head = head
        with torch.no_grad():
            assert_close(own.eval()(x), peer.eval()(x))
        assert_close(own(x), peer(x))


def changed(model: nn.Module) -> None:
    """One step of training."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.randn(2, 3, 32, 32, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    model.eval()


def test_folded_weights_are_never_stale() -> None:
    own = pair("vz-mit_b0")[1].eval()
    x = image(own, 32, 64)
    assert_same_outputs(own, x)
    average = AveragedModel(own, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True).eval()
    assert_same_outputs(average.module, x)

    changed(own)
    assert_same_outputs(own, x)
    assert_same_outputs(average.module, x)
    average.update_parameters(own)
    average.update_parameters(own)
    assert_same_outputs(average.module, x)

    own.load_state_dict(pair("vz-mit_b0")[1].state_dict())
    assert_same_outputs(own, x)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(1.1)
        own.decoder.fuse_stage[1].running_mean.add_(0.3)
    assert_same_outputs(own, x)
    own.decoder.fuse_stage[0].weight.data = own.decoder.fuse_stage[0].weight.data * 0.7
    assert_same_outputs(own, x)

    twin, revived = copy.deepcopy(own), pickle.loads(pickle.dumps(own))
    changed(own)
    for model in (own, twin, revived):
        assert_same_outputs(model, x)
        changed(model)
        assert_same_outputs(model, x)
    own.float()
    assert_same_outputs(own, x.float())
    assert_same_outputs(own.train(), x.float())
    assert_same_outputs(own.double().eval(), x)


@pytest.fixture
def process_group(tmp_path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_training_sees_ordinary_parameters(process_group: None) -> None:
    peer, own = pair("vz-mit_b0")
    assert {type(p) for p in own.parameters()} == {nn.Parameter}
    x = image(own, 64, 64)
    parallel = DistributedDataParallel(own)
    for model in (peer.train(), parallel.train()):
        for _ in range(2):  # the second pass fails if a gradient of the first one did not arrive
            model.zero_grad()
            model(x).square().mean().backward()
    assert_same_gradients(own, peer)


def test_gradients_compiled_for_any_size() -> None:
    own = pair("resnet18", 4)[1].train()
    compiled = torch.compile(own, backend="eager", fullgraph=True, dynamic=True)
    for size in ((64, 96), (128, 64)):
        x = image(own, *size)
        gradients = []
        for forward in (own, compiled):
            own.zero_grad()
            output = forward(x)
            output.square().mean().backward()
            gradients.append([p.grad for p in own.parameters()])
        assert_close(output, own(x))
        assert_close(*gradients)


@pytest.mark.parametrize("kept", [True, False])
def test_batch_norm_that_tracks_no_statistics(kept: bool) -> None:
    """Switched off on a norm that has them, and of a norm that never had any."""
    peer, own = pair("resnet18", 4)
    for model in (peer, own):
        norm = nn.BatchNorm2d(48, track_running_stats=kept).double()
        norm.track_running_stats = False
        model.decoder.fuse_stage[1] = norm
    x = image(own, 64, 32)
    assert_close(own.train()(x), peer.train()(x))
    assert_close(own.state_dict(), peer.state_dict())
    assert_close(own.eval()(x), peer.eval()(x))


def test_exports_with_free_sizes() -> None:  # over an encoder of SMP; over MiT in test_export.py
    own = pair("resnet18", 4)[1].eval()
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    exported = torch.export.export(own, (image(own, 64, 96),), dynamic_shapes=(free,)).module()
    for x in (image(own, 64, 96), image(own, 128, 64)[:1]):
        with torch.no_grad():
            assert_close(exported(x), own(x))


def test_is_traced() -> None:
    own = smp.FusedSegformer("resnet18", encoder_weights=None, classes=3).eval()
    traced = torch.jit.trace(own, torch.rand(2, 3, 64, 64))
    x = torch.rand(1, 3, 96, 32)
    assert_close(traced(x), own(x), 1e-4)
    assert not own._is_torch_scriptable  # which SMP's own tests go by


def test_errors() -> None:
    with pytest.raises(ValueError, match="depth"):
        smp.FusedSegformer("resnet18", encoder_depth=2, encoder_weights=None)
    with pytest.raises(KeyError, match="no_such_encoder"):
        smp.FusedSegformer("no_such_encoder")
    with pytest.raises(RuntimeError, match="divisible by 32"):
        smp.FusedSegformer("resnet18", encoder_weights=None)(torch.rand(1, 3, 33, 32))
