"""Thousands of imports in every order, with threads, Ctrl-C, reloads and purges, each in a process of its own

    python tests/registration_stress.py --runs 5000

The zoo's own registration runs over stand-ins of torch, timm, SMP and of the zoo's models that have their
structure (who imports whom, what is made when) and pause here and there, so that a run takes milliseconds.
"""

import argparse
import faulthandler
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAND_INS = {
    "pause.py": """
        import random, time
        def pause():
            time.sleep(random.choice([0, 0, 0.0002, 0.001]))
        """,
    "torch/__init__.py": """
        from importlib.metadata import entry_points
        from pause import pause
        pause()
        for entry in entry_points(group="torch.backends"):
            try:
                entry.load()()
            except Exception as error:
                raise RuntimeError(f"Failed to load the backend extension: {entry.name}") from error
        """,
    "timm/__init__.py": "import timm.layers\nfrom .models import create_model, is_model\n",
    "timm/layers/__init__.py": "import torch, pause\npause.pause()\n",
    "timm/models/__init__.py": """
        from pause import pause
        pause()
        from .vision_transformer import *
        from ._registry import create_model, is_model, register_model
        pause()
        """,
    "timm/models/_registry.py": """
        _models = {}
        def register_model(function):
            _models[function.__name__] = function
            return function
        def is_model(name):
            return name in _models
        def create_model(name):
            return _models[name]()
        """,
    "timm/models/vision_transformer.py": """
        import timm.layers
        import pause as _pause
        from ._registry import register_model
        _pause.pause()
        class VisionTransformer: pass
        @register_model
        def vit():
            return VisionTransformer()
        """,
    "segmentation_models_pytorch/__init__.py": """
        from pause import pause
        from . import datasets
        pause()
        from . import encoders
        pause()
        from .base import SegmentationModel
        class Unet(SegmentationModel): pass
        MODEL_ARCHITECTURES_MAPPING = {"unet": Unet}
        pause()
        def create_model(name):
            return MODEL_ARCHITECTURES_MAPPING[name]()
        pause()
        """,
    "segmentation_models_pytorch/base.py": "import torch\nclass SegmentationModel: pass\n",
    "segmentation_models_pytorch/datasets.py": "import torch, pause\npause.pause()\n",
    "segmentation_models_pytorch/encoders/__init__.py": """
        import timm, pause
        pause.pause()
        class ResNetEncoder: pass
        encoders = {"resnet": {"encoder": ResNetEncoder, "params": {}, "pretrained_settings": {}}}
        pause.pause()
        def get_encoder(name):
            return encoders[name]["encoder"]()
        """,
    "vitseg_zoo/encoders/__init__.py": "",
    "vitseg_zoo/encoders/vit_seg.py": """
        import pause
        from timm.models import register_model, vision_transformer
        from vitseg_zoo.encoders.pyramid import Pyramid
        class VitSegTransformer(vision_transformer.VisionTransformer): pass
        pause.pause()
        @register_model
        def vitseg():
            return VitSegTransformer()
        settings = {"encoder": Pyramid, "params": {"name": "vitseg"}, "pretrained_settings": {}}
        smp_encoders = {"vz-vitseg": settings}
        """,
    "vitseg_zoo/encoders/pyramid.py": "import torch, pause\npause.pause()\nclass Pyramid: pass\n",
    "vitseg_zoo/architectures/__init__.py": """
        from pause import pause
        pause()
        from vitseg_zoo.architectures.vit_seg import VitSeg
        """,
    "vitseg_zoo/architectures/vit_seg.py": """
        import segmentation_models_pytorch as smp
        from segmentation_models_pytorch.base import SegmentationModel
        from vitseg_zoo.encoders.vit_seg import VitSegTransformer
        class VitSeg(SegmentationModel): pass
        """,
    "other_zoo.py": """
        from timm.models import register_model
        @register_model
        def other():
            return "other"
        class Other: pass
        smp_encoders = {"vz-other": {"encoder": Other, "params": {}, "pretrained_settings": {}}}
        """,
    "zoo-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: zoo\nVersion: 1\n",
    "zoo-1.dist-info/entry_points.txt": """
        [torch.backends]
        vitseg_zoo = vitseg_zoo_autoload:autoload
        [vitseg_zoo.encoders]
        vit_seg = vitseg_zoo.encoders.vit_seg:smp_encoders
        other = other_zoo:smp_encoders
        [vitseg_zoo.architectures]
        vitseg = vitseg_zoo.architectures:VitSeg
        """,
}
STATEMENTS = [
    "import torch",
    "import timm",
    "import timm.models",
    "import segmentation_models_pytorch as smp",
    "from segmentation_models_pytorch import create_model",
    "import segmentation_models_pytorch.encoders",
    "from segmentation_models_pytorch.encoders import get_encoder",
    "import vitseg_zoo",
    "import vitseg_zoo.architectures",
]
USES = [
    "import segmentation_models_pytorch as smp; assert type(smp.create_model('vitseg')).__name__ == 'VitSeg'",
    "from segmentation_models_pytorch import create_model; create_model('vitseg')",
    "from segmentation_models_pytorch import VitSeg",
    "from segmentation_models_pytorch.encoders import get_encoder; get_encoder('vz-vitseg')",
    "import timm; timm.create_model('vitseg')",
]
GROUPS = ["timm", "segmentation_models_pytorch", "vitseg_zoo"]


def write_stand_ins(folder: Path) -> None:
    """Lays out the stand-ins, beside the zoo's own files of registration."""
    for name, source in STAND_INS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(source))
    for name in ("__init__.py", "_autoload.py", "_importing.py", "registry.py"):
        shutil.copy(ROOT / "vitseg_zoo" / name, folder / "vitseg_zoo")
    shutil.copy(ROOT / "vitseg_zoo_autoload.py", folder)


def check() -> None:
    """All models are there, for timm and for SMP, and SMP is what it was."""
    for use in USES:
        exec(use, {})
    smp, encoders, timm = (sys.modules[name] for name in (GROUPS[1], f"{GROUPS[1]}.encoders", GROUPS[0]))
    assert timm.create_model("other") == "other" and "vz-other" in encoders.encoders
    assert type(smp).__name__ == "module", type(smp)
    assert len([f for f in sys.meta_path if type(f).__name__ == "_RegisteringFinder"]) == 1


def order(dice: random.Random) -> None:
    for statement in dice.sample(STATEMENTS, dice.randint(0, 4)):
        exec(statement, {})


def threads(dice: random.Random) -> None:
    """Several threads import and use at once; a use must work as soon as its own import has returned."""
    if dice.random() < 0.5:
        exec(dice.choice(STATEMENTS), {})
    errors: list[str] = []
    # Packages before their submodules: of threads that begin at either end, Python itself fails one.
    packages = [statement for statement in STATEMENTS if "." not in statement]
    uses = [use for use in USES if "encoders" not in use]
    uses.append("import segmentation_models_pytorch as smp; smp.encoders.get_encoder('vz-vitseg')")
    chosen = [[dice.choice(packages), dice.choice(uses)] for _ in range(dice.randint(2, 4))]
    barrier = threading.Barrier(len(chosen))

    def work(statements: list[str]) -> None:
        barrier.wait()
        try:
            for statement in statements:
                exec(statement, {})
        except BaseException:
            errors.append(f"{statements}\n{traceback.format_exc()}")

    workers = [threading.Thread(target=work, args=(statements,)) for statements in chosen]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors, "\n".join(errors)


def interrupt(dice: random.Random) -> None:
    """Ctrl-C in the middle of an import of timm or SMP, and once more; the import is then repeated."""
    import torch  # noqa: F401

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for _ in range(dice.randint(1, 3)):
        try:
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-4, 2e-2))
            exec(dice.choice(STATEMENTS), {})
            exec(dice.choice(USES), {})
            time.sleep(0.03)
        except KeyboardInterrupt:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def reload(dice: random.Random) -> None:
    order(dice)
    check()
    names = [f"{GROUPS[0]}.models", GROUPS[0], f"{GROUPS[1]}.encoders", GROUPS[1], "vitseg_zoo"]
    names += ["vitseg_zoo._autoload", "vitseg_zoo.registry"]
    for name in dice.sample(names, dice.randint(1, 3)):
        importlib.reload(importlib.import_module(name))


def purge(dice: random.Random) -> None:
    """Modules are taken out of `sys.modules` and imported anew, as pytest and notebooks do."""
    order(dice)
    check()
    for group in dice.sample(GROUPS, dice.randint(1, len(GROUPS))):
        for name in [name for name in sys.modules if name == group or name.startswith(f"{group}.")]:
            del sys.modules[name]
        if group == "vitseg_zoo":  # which tells that the other's models were in timm
            sys.modules.pop("other_zoo", None)
    order(dice)


SCENARIOS = (order, threads, interrupt, reload, purge)


def run_one(seed: int) -> int:
    """Forks a process that runs one scenario; returns its exit status, 1 too where it hangs."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        faulthandler.dump_traceback_later(20, exit=True)
        dice = random.Random(seed)
        random.seed(seed)
        SCENARIOS[seed % len(SCENARIOS)](dice)
        check()
        status = 0
    except BaseException:
        print(f"seed {seed}, {SCENARIOS[seed % len(SCENARIOS)].__name__}:", file=sys.stderr)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    parser.add_argument("--stand-ins", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stand_ins is None:  # again in an interpreter that sees nothing but the standard library
        with tempfile.TemporaryDirectory() as folder:
            write_stand_ins(Path(folder))
            command = [sys.executable, "-I", "-S", "-W", "error::RuntimeWarning", __file__, *sys.argv[1:]]
            sys.exit(subprocess.run([*command, "--stand-ins", folder]).returncode)
    sys.path.insert(0, str(args.stand_ins))
    failed = sum(run_one(seed) != 0 for seed in range(args.first, args.first + args.runs))
    print(f"{failed} of {args.runs} runs failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
