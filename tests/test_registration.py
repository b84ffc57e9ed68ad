"""Registration without importing us: each case in a process of its own, as import order is what matters."""

import os
import shutil
import subprocess
import sys
import textwrap
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from warm_python import WarmPython

import vitseg_zoo_autoload

ROOT = Path(__file__).parents[1]

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


def run(
    code: str, tmp_path: Path | None = None, errors: bool = False, fresh: bool = False, **env: str
) -> subprocess.CompletedProcess:
    """Runs code in a process of its own; `tmp_path` goes onto its path, as if installed there.

    It is a fork of one that has loaded torch and imports it first, or, of a few tests, a new interpreter.
    """
    environment = {**os.environ, **env}
    if tmp_path is not None:
        environment["PYTHONPATH"] = str(tmp_path)
    code = textwrap.dedent(code)
    if fresh:
        flags = ["-W", "error::RuntimeWarning"] if errors else []
        command = [sys.executable, *flags, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True)
    process = WarmPython(code, environment=environment, only_torch=True, errors=errors)
    return subprocess.CompletedProcess([], process.wait(), *process.communicate())


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
    fresh = order in ("smp", "torch timm smp")  # the others come after torch is in memory
    result = run("\n".join([*lines, CHECK]), errors=True, fresh=fresh)
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
    print(len([f for f in sys.meta_path if type(f).__name__ == "_RegisteringFinder"]))
    """
    result = run(code, errors=True)
    assert result.stdout.splitlines() == [
        "False 1",
        "['vitseg'] ['vz-vitseg_tiny_patch16_128', 'vz-vitseg_tiny_patch8_128']",
        "1",
    ], result.stderr


def test_a_module_of_the_zoo_may_come_before_any_use_of_smp() -> None:
    code = "import segmentation_models_pytorch as smp\nfrom vitseg_zoo.architectures import VitSeg"
    result = run(f"{code}\n{CHECK}", errors=True)
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
    result = run(textwrap.dedent(code) + CHECK, tmp_path, errors=True)
    assert result.stdout == "ok\n", result.stderr


def test_finding_a_module_without_importing_it_loses_nothing() -> None:
    code = """
    import torch, importlib.util
    importlib.util.find_spec("timm.models")
    importlib.util.find_spec("segmentation_models_pytorch.encoders")
    """
    result = run(textwrap.dedent(code) + CHECK)
    assert result.stdout == "ok\n", result.stderr


@pytest.mark.parametrize("off", ["", "0", "false", "No", " OFF "])
def test_values_that_switch_automatic_registration_off(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = []
    monkeypatch.setattr("builtins.__import__", lambda name, *args, **kwargs: imported.append(name))
    monkeypatch.setenv("VITSEG_ZOO_AUTOLOAD", off)
    vitseg_zoo_autoload.autoload()
    assert "vitseg_zoo" not in imported


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


BROKEN = """
[vitseg_zoo.encoders]
missing_module = nowhere_to_be_found:smp_encoders
exit = exits:smp_encoders
base_exception = leaves:smp_encoders
wrong_type = wrong:smp_encoders
wrong_entry = lacks:smp_encoders
no_value =
[vitseg_zoo.architectures]
exception = third_party:Model
no_module = a b c
"""


# Once with warnings as errors, only our own: those of the libraries are not what is tested.
@pytest.mark.parametrize("errors", [False, True], ids=["", "warnings as errors"])
def test_broken_third_party_entries_are_a_warning_each(errors: bool, tmp_path: Path) -> None:
    install_plugin(
        tmp_path,
        BROKEN,
        third_party="raise RuntimeError('no good')",
        exits="import sys; sys.exit(3)",
        leaves="raise GeneratorExit('no good')",
        wrong="smp_encoders = 5",
        lacks="smp_encoders = {'vz-x': {'encoder': None}}",
    )
    result = run(f"import torch\n{CHECK}", tmp_path, errors)
    assert result.stdout == "ok\n", result.stderr
    for entry in [line.partition(" =")[0] for line in BROKEN.splitlines() if "=" in line]:
        assert result.stderr.count(f"vitseg_zoo leaves out '{entry}'") == 1


def test_ctrl_c_in_a_plugin_reaches_the_user(tmp_path: Path) -> None:
    entry = "[vitseg_zoo.encoders]\nslow = slow:smp_encoders\n"
    install_plugin(tmp_path, entry, slow="raise KeyboardInterrupt")
    result = run("import timm", tmp_path)
    assert result.returncode != 0 and result.stderr.endswith("KeyboardInterrupt\n"), result.stderr


def test_four_threads_that_ask_first_all_get_a_model() -> None:
    code = """
    import sys, threading
    import segmentation_models_pytorch as smp
    barrier = threading.Barrier(4)
    def work():
        barrier.wait()
        smp.create_model("vitseg", "vz-vitseg_tiny_patch16_128", encoder_weights=None)
        sys.stdout.write("ok\\n")  # a line in one write, as print makes two of it
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    """
    result = run(code)
    assert result.stdout.split() == ["ok"] * 4, result.stderr


def test_reloaded_and_purged_libraries_have_the_models() -> None:
    code = """
    import importlib, sys
    import segmentation_models_pytorch as smp, timm
    for module in (smp.encoders, smp, timm.models):
        importlib.reload(module)
        assert smp.create_model("vitseg", "vz-vitseg_tiny_patch16_128", encoder_weights=None)
    for group in ("timm", "segmentation_models_pytorch"):
        for name in [name for name in sys.modules if name.partition(".")[0] == group]:
            del sys.modules[name]
    """
    result = run(textwrap.dedent(code) + CHECK, errors=True)
    assert result.stdout == "ok\n", result.stderr


def test_imports_in_every_order_with_threads_ctrl_c_reloads_and_purges() -> None:
    """Few, over stand-ins of the libraries: `registration_stress.py` runs thousands by hand."""
    stress = [sys.executable, str(Path(__file__).with_name("registration_stress.py")), "--runs", "200"]
    result = subprocess.run(stress, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-5000:]


class _Loader:
    """A loader that none can set an attribute of, and that has only what `methods` says."""

    __slots__ = ("_inner",)

    def __init__(self, inner) -> None:
        object.__setattr__(self, "_inner", inner)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} is read-only")


class _ReadOnly(_Loader):
    def create_module(self, spec):
        return None

    def exec_module(self, module) -> None:
        exec("loaded = True", vars(module))


class _OnlyLoadModule(_Loader):
    def load_module(self, name: str):
        module = sys.modules[name] = type(sys)(name)
        module.loaded = True
        return module


class _IsAClass:
    create_module = staticmethod(lambda spec: None)
    exec_module = staticmethod(lambda module: exec("loaded = True", vars(module)))


@pytest.mark.parametrize("loader", [_ReadOnly(None), _OnlyLoadModule(None), _IsAClass])
def test_loaders_of_every_kind(loader, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.machinery import ModuleSpec

    from vitseg_zoo import _autoload

    class Finder:
        def find_spec(name, path=None, target=None):
            return ModuleSpec(name, loader) if name == "awaited" else None

    called = []
    monkeypatch.setitem(_autoload._HOOKS, "awaited", "hook")
    monkeypatch.setattr(_autoload, "_call_registry", called.append)
    monkeypatch.setattr(sys, "meta_path", [_autoload._RegisteringFinder(), Finder, *sys.meta_path])
    try:
        import awaited
    finally:
        sys.modules.pop("awaited", None)
    assert awaited.loaded and called == ["hook"]
    assert loader in (awaited.__loader__, awaited.__spec__.loader) or loader is not _IsAClass


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no _autoload": lambda site: (site / "vitseg_zoo" / "_autoload.py").unlink(),
    "empty _autoload": lambda site: (site / "vitseg_zoo" / "_autoload.py").write_text(""),
    "syntax error": lambda site: (site / "vitseg_zoo" / "__init__.py").write_text("def"),
    "empty package": lambda site: (site / "vitseg_zoo" / "__init__.py").write_text(""),
    "half an upgrade": lambda site: [
        path.unlink() for path in (site / "vitseg_zoo").glob("*.py") if path.name != "__init__.py"
    ],
    "no package": lambda site: shutil.rmtree(site / "vitseg_zoo"),
    "a user's vitseg_zoo.py": lambda site: (site.parents[3] / "vitseg_zoo.py").write_text("exit(5)"),
    "a moved checkout": lambda site: (site.parents[3] / "source").rename(site.parents[3] / "moved"),
}


def _install(folder: Path, *options: str) -> None:
    command = [
        folder / "venv" / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*command, *options, folder / "source"], check=True, capture_output=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source and an environment that it is installed in, with all else from this one."""
    folder = tmp_path_factory.mktemp("installed")
    # By name, as a checkout may hold much else: an environment, data, trainings.
    for name in ("vitseg_zoo", "recipes"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("files"))
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"):
        shutil.copy(path, folder / "source")
    venv.create(folder / "venv")
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "shared.pth").write_text(str(Path(pytest.__file__).parents[1]))
    _install(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_installation_leaves_torch_alone(damage: str, installed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(installed, tmp_path / "damaged", symlinks=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    if damage == "a moved checkout":
        _install(folder, "--force-reinstall", "-e")
    DAMAGES[damage](site)
    code = "import torch, timm; timm.create_model('resnet18'); print('ok')"
    result = subprocess.run(
        [folder / "venv" / "bin" / "python", "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert result.stdout == "ok\n", result.stderr
    if damage != "empty package":  # a package without a word: nothing is registered, and nothing known of it
        assert "vitseg_zoo" in result.stderr


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
