"""Registration without importing us: each case in a fresh interpreter, as import order is what matters."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

IMPORTS = {
    "timm": "import timm",
    "smp": "import segmentation_models_pytorch as smp",
    "torch": "import torch",
    "zoo": "import vitseg_zoo",
    "from_smp": "from segmentation_models_pytorch import create_model",
    "encoders": "import segmentation_models_pytorch.encoders",
    "timm_models": "import timm.models",
}
CHECK = """
import segmentation_models_pytorch as smp, timm, warnings, types
from segmentation_models_pytorch import create_model
kwargs = dict(encoder_name="vz-vitseg_tiny_patch16_128", encoder_weights=None)
for model in (create_model("vitseg", classes=4, **kwargs), smp.VitSeg(classes=4, **kwargs)):
    assert type(model).__name__ == "VitSeg" and model.segmentation_head[0].out_features == 16 * 16 * 4
assert timm.list_models("vitseg_[tsb]*") == timm.list_models(module="vit_seg") != []
timm.create_model("vitseg_tiny_patch16_128")
smp.encoders.get_encoder("vz-vitseg_tiny_patch16_128", weights=None)
smp.create_model("unet", "resnet18", encoder_weights=None)
assert type(smp) is types.ModuleType  # the class that was lent is given back
print("ok")
"""


def run(code: str, tmp_path: Path | None = None, *flags: str, **env: str) -> subprocess.CompletedProcess:
    """Runs code in an interpreter of its own; `tmp_path` goes onto its path, as if installed there."""
    environment = {**os.environ, **env}
    if tmp_path is not None:
        environment["PYTHONPATH"] = str(tmp_path)
    code = textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, *flags, "-c", code], env=environment, capture_output=True, text=True
    )


def install_plugin(folder: Path, entry_points: str, **modules: str) -> None:
    """Lays out an installed third-party distribution that declares entry points."""
    info = folder / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(source))


@pytest.mark.parametrize(
    "order",
    ["smp", "timm smp", "torch smp timm", "torch timm smp", "from_smp", "zoo smp", "smp zoo", "timm zoo smp",
     "encoders", "timm_models torch zoo"],
)  # fmt: skip
def test_every_import_order_registers(order: str) -> None:
    lines = [IMPORTS[name] for name in order.split()]
    result = run("\n".join([*lines, CHECK]), None, "-W", "error::RuntimeWarning")
    assert result.stdout == "ok\n", result.stderr


def test_create_model_reads_smps_defaults_as_the_articles_encoder() -> None:
    code = """
    import segmentation_models_pytorch as smp
    model = smp.create_model("vitseg", classes=3)
    print(sum(parameter.numel() for parameter in model.parameters()), model.name)
    """
    assert run(code).stdout == "86284806 vitseg-vz-vitseg_base_patch16_128\n"


def test_import_is_light_and_may_be_repeated() -> None:
    code = """
    import sys, vitseg_zoo
    print("torch" in sys.modules, len([f for f in sys.meta_path if type(f).__name__ == "_RegisteringFinder"]))
    import importlib; importlib.reload(vitseg_zoo)
    import segmentation_models_pytorch as smp
    del sys.modules["vitseg_zoo"]; import vitseg_zoo
    print(vitseg_zoo.list_models("vitseg"), vitseg_zoo.list_models("vz-vitseg_tiny*", kind="encoder"))
    print([f for f in sys.meta_path if type(f).__name__ == "_RegisteringFinder"])
    """
    result = run(code, None, "-W", "error::RuntimeWarning")
    assert result.stdout.splitlines() == [
        "False 1",
        "['vitseg'] ['vz-vitseg_tiny_patch16_128', 'vz-vitseg_tiny_patch8_128']",
        "[]",
    ], result.stderr


def test_a_module_of_the_zoo_may_come_before_any_use_of_smp() -> None:
    code = "import segmentation_models_pytorch as smp\nfrom vitseg_zoo.architectures import VitSeg"
    result = run(f"{code}\n{CHECK}", None, "-W", "error::RuntimeWarning")
    assert result.stdout == "ok\n", result.stderr


def test_a_module_that_declares_models_may_be_the_first_import(tmp_path: Path) -> None:
    install_plugin(
        tmp_path,
        """
        [vitseg_zoo.encoders]
        mine = mine:smp_encoders
        [vitseg_zoo.architectures]
        mine = mine:MyNet
        """,
        mine="""
        import segmentation_models_pytorch as smp
        class MyNet(smp.base.SegmentationModel):
            def __init__(self, **kwargs):
                super().__init__()
        smp_encoders = {"vz-mine": smp.encoders.encoders["resnet18"]}
        """,
    )
    code = """
    import mine
    import segmentation_models_pytorch as smp
    assert type(smp.create_model("mynet")) is mine.MyNet is smp.MyNet
    smp.encoders.get_encoder("vz-mine", weights=None)
    """
    result = run(textwrap.dedent(code) + CHECK, tmp_path, "-W", "error::RuntimeWarning")
    assert result.stdout == "ok\n", result.stderr


def test_finding_a_module_without_importing_it_loses_nothing() -> None:
    code = """
    import torch, importlib.util
    importlib.util.find_spec("timm.models")
    importlib.util.find_spec("segmentation_models_pytorch.encoders")
    """
    result = run(textwrap.dedent(code) + CHECK)
    assert result.stdout == "ok\n", result.stderr


@pytest.mark.parametrize("switch", ["VITSEG_ZOO_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD"])
@pytest.mark.parametrize("zoo_first", [True, False])
def test_off_switches_leave_explicit_registration(switch: str, zoo_first: bool) -> None:
    before = """
    import segmentation_models_pytorch as smp, timm
    assert "vitseg" not in smp.MODEL_ARCHITECTURES_MAPPING and not timm.list_models("vitseg*")
    import vitseg_zoo
    """
    before = "import vitseg_zoo, torch" if zoo_first else textwrap.dedent(before)
    result = run(f"{before}\n{CHECK}", **{switch: "0"})
    assert result.stdout == "ok\n", result.stderr


BROKEN = {
    "missing module": "[vitseg_zoo.encoders]\nbroken = nowhere_to_be_found:smp_encoders\n",
    "exception": "[vitseg_zoo.architectures]\nbroken = third_party:Model\n",
    "exit": "[vitseg_zoo.encoders]\nbroken = exits:smp_encoders\n",
    "wrong type": "[vitseg_zoo.encoders]\nbroken = wrong:smp_encoders\n",
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("flags", [[], ["-W", "error"]], ids=["", "warnings as errors"])
def test_a_broken_third_party_entry_is_one_warning(fault: str, flags: list[str], tmp_path: Path) -> None:
    install_plugin(
        tmp_path,
        BROKEN[fault],
        third_party="raise RuntimeError('no good')",
        exits="import sys; sys.exit(3)",
        wrong="smp_encoders = 5",
    )
    if flags:  # only our own warnings: those of the libraries are not what is tested
        flags = ["-W", "error::RuntimeWarning"]
    result = run(f"import torch\n{CHECK}", tmp_path, *flags)
    assert result.stdout == "ok\n", result.stderr
    assert result.stderr.count("vitseg_zoo leaves out 'broken'") == 1


def test_our_own_breakage_is_one_warning(tmp_path: Path) -> None:
    code = """
    import sys
    sys.modules["vitseg_zoo.registry"] = None  # importing it raises
    import torch, timm, segmentation_models_pytorch as smp
    smp.create_model("unet", "resnet18", encoder_weights=None), timm.create_model("resnet18")
    print("ok")
    """
    result = run(code)
    assert result.stdout == "ok\n", result.stderr
    assert "could not register" in result.stderr


def test_other_packages_join_the_zoo(tmp_path: Path) -> None:
    install_plugin(
        tmp_path,
        """
        [vitseg_zoo.encoders]
        mine = mine_encoders:smp_encoders
        [vitseg_zoo.architectures]
        mine = mine_architecture:MyNet
        unet = mine_architecture:Unet
        """,
        mine_encoders="""
        from timm.models import register_model
        from timm.models.resnet import resnet18
        from segmentation_models_pytorch.encoders import encoders
        @register_model
        def mine_resnet(pretrained=False, **kwargs):
            return resnet18(pretrained, **kwargs)
        smp_encoders = {"vz-mine_resnet": encoders["resnet18"], "resnet34": encoders["resnet18"]}
        """,
        mine_architecture="""
        from segmentation_models_pytorch.base import SegmentationModel
        class MyNet(SegmentationModel):
            def __init__(self, **kwargs):
                super().__init__()
        class Unet(SegmentationModel):
            pass
        """,
    )
    code = """
    import segmentation_models_pytorch as smp, timm, vitseg_zoo
    print(type(smp.create_model("mynet")).__name__, timm.list_models("mine*"))
    print(vitseg_zoo.list_models("*mine*"), smp.encoders.get_encoder("vz-mine_resnet").out_channels)
    print(smp.Unet.__module__, smp.encoders.encoders["resnet34"]["params"]["layers"])
    """
    result = run(code, tmp_path)
    assert result.stdout.splitlines() == [
        "MyNet ['mine_resnet']",
        "['vz-mine_resnet'] [3, 64, 64, 128, 256, 512]",
        "segmentation_models_pytorch.decoders.unet.model [3, 4, 6, 3]",
    ], result.stderr
    assert "encoder 'resnet34': the name is taken" in result.stderr
    assert "architecture 'Unet': the name is taken" in result.stderr


def test_list_models_rejects_an_unknown_kind() -> None:
    import vitseg_zoo

    with pytest.raises(ValueError, match="kind"):
        vitseg_zoo.list_models(kind="decoder")


def test_unknown_public_name_is_an_attribute_error() -> None:
    import vitseg_zoo

    with pytest.raises(AttributeError, match="nothing_here"):
        _ = vitseg_zoo.nothing_here
    assert "list_models" in dir(vitseg_zoo)
