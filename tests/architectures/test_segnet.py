"""SegNet against a plain PyTorch one that is written from the article's description."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import vitseg_zoo


class PlainSegNet(nn.Module):
    """The description, layer by layer; names as somebody else might choose them."""

    def __init__(self, separable: bool, in_channels: int = 3, classes: int = 3) -> None:
        super().__init__()

        def conv(i: int, o: int, relu: bool = True) -> nn.Sequential:
            if separable:
                layers = [
                    nn.Conv2d(i, i, 3, padding=1, groups=i, bias=False),
                    nn.Conv2d(i, o, 1, bias=False),
                ]
            else:
                layers = [nn.Conv2d(i, o, 3, padding=1, bias=False)]
            return nn.Sequential(*layers, nn.BatchNorm2d(o), nn.ReLU() if relu else nn.Identity())

        self.bn_input = nn.BatchNorm2d(in_channels)
        self.dc1 = nn.Sequential(conv(in_channels, 64), conv(64, 64))
        self.dc2 = nn.Sequential(conv(64, 128), conv(128, 128))
        self.dc3 = nn.Sequential(conv(128, 256), conv(256, 256), conv(256, 256))
        self.dc4 = nn.Sequential(conv(256, 512), conv(512, 512), conv(512, 512))
        self.uc4 = nn.Sequential(conv(512, 512), conv(512, 512), conv(512, 256))
        self.uc3 = nn.Sequential(conv(256, 256), conv(256, 256), conv(256, 128))
        self.uc2 = nn.Sequential(conv(128, 128), conv(128, 64))
        self.uc1 = nn.Sequential(conv(64, 64), conv(64, classes, relu=False))
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, indices = self.bn_input(x), []
        for down in (self.dc1, self.dc2, self.dc3, self.dc4):
            x, where = self.pool(down(x))
            indices.append(where)
        for up in (self.uc4, self.uc3, self.uc2, self.uc1):
            x = up(self.unpool(x, indices.pop()))
        return x


@pytest.mark.parametrize("arch, parameters", [("segnet", 15_274_892), ("segnetdsc", 1_749_671)])
@pytest.mark.parametrize("counters", [True, False])
def test_weights_of_a_plain_segnet_give_its_outputs(arch, parameters, counters, tmp_path) -> None:
    plain = PlainSegNet(separable=arch == "segnetdsc")
    assert sum(p.numel() for p in plain.parameters()) == parameters
    plain(torch.rand(2, 3, 32, 32))  # moves the running statistics
    weights = plain.state_dict()
    if not counters:  # as PyTorch before 1.0 saved them
        weights = {key: value for key, value in weights.items() if "num_batches" not in key}
    torch.save(weights, tmp_path / "plain.pth")

    model = smp.create_model(arch, classes=3)
    report = vitseg_zoo.load_weights(model, tmp_path / "plain.pth", strict=counters)
    assert report.format == "plain SegNet" and not report.unexpected and not report.mismatched
    assert all("num_batches" in key for key in report.missing)

    loaded, metadata = vitseg_zoo.load_model(tmp_path / "plain.pth")
    assert metadata["architecture"] == arch and metadata["mean"] == [0.0, 0.0, 0.0]
    image = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        expected = plain.eval()(image)
        for ours in (model, loaded):
            torch.testing.assert_close(ours.eval()(image), expected, rtol=1e-5, atol=1e-5)


def test_a_segnet_of_another_size_is_no_segnet_of_ours(tmp_path) -> None:
    plain = PlainSegNet(separable=False)
    plain.dc2 = nn.Sequential(plain.dc2[0])
    torch.save(plain.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit SegNet"):
        vitseg_zoo.load_weights(smp.create_model("segnet"), tmp_path / "other.pth")


def test_what_stands_for_an_encoder() -> None:
    assert smp.create_model("segnet").config["encoder_name"] == "segnet"
    smp.create_model("segnetdsc", "segnetdsc", None)
    with pytest.raises(ValueError, match="an encoder of its own, got encoder_name='resnet18'"):
        smp.create_model("segnet", "resnet18", None)
    with pytest.raises(ValueError, match="no pretrained weights for segnet"):
        smp.create_model("segnet", encoder_weights="imagenet21k")
    with pytest.raises(RuntimeError, match="divisible by 16"):
        smp.create_model("segnet")(torch.rand(1, 3, 50, 33))


def test_options_of_smp() -> None:
    model = smp.create_model(
        "segnetdsc", in_channels=4, classes=5, activation="softmax2d", aux_params={"classes": 2}
    )
    masks, labels = model(torch.rand(2, 4, 32, 48))
    torch.testing.assert_close(masks.sum(1), torch.ones(2, 32, 48))
    assert labels.shape == (2, 2)
