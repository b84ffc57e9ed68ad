"""Python processes of one's own environment that need not import torch, timm and SMP: forks of one that has.

A new interpreter takes seconds to import them, which some hundred tests cannot each afford. Those of
registration fork from a process that has loaded torch only, and still import it first, as if it were new.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

_EVERYTHING = """
import torch, timm, segmentation_models_pytorch, vitseg_zoo.weights.download, vitseg_zoo.cli
import lightning.pytorch
from huggingface_hub import constants

def read_environment():
    importlib.reload(constants)  # all that huggingface_hub reads of it, and other modules' copies
    modules = [module for name, module in sys.modules.items() if name.startswith("huggingface_hub.")]
    for name, value in vars(constants).items():
        for module in modules:
            if name.isupper() and name in vars(module):
                setattr(module, name, value)

begin = read_environment
"""

_ONLY_TORCH = """
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # of this process, not of its forks
import torch, torchvision, huggingface_hub

class FirstImport:
    torch, spec = torch, torch.__spec__

    def find_spec(name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, FirstImport) if name == "torch" else None

    def create_module(spec):
        return FirstImport.torch

    def exec_module(module):  # what torch does with its last lines
        sys.meta_path.remove(FirstImport)
        module.__spec__ = FirstImport.spec
        if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") == "1":
            module._import_device_backends()

def begin():
    del sys.modules["torch"]
    sys.meta_path.insert(0, FirstImport)
    os.environ.get("PYTHONPATH") and sys.path.insert(1, os.environ["PYTHONPATH"])

del torch
"""

_SERVER = """
import importlib.machinery, json, os, signal, sys, traceback, warnings
{preparation}
def write(path, number):
    with open(path + ".part", "w") as file:
        file.write(str(number))
    os.rename(path + ".part", path)

def run(request):
    for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells in the background ignore
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    begin()
    if request["errors"]:  # as -W error::RuntimeWarning
        warnings.simplefilter("error", RuntimeWarning)
    sys.argv = request["arguments"]
    code = 0
    try:
        exec(compile(request["code"], "<code>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    request = json.loads(line)
    if os.fork() == 0:  # waits for the one that works, as nobody but its parent can
        child = os.fork()
        if child == 0:
            run(request)
        write(request["pid"], child)
        _, status = os.waitpid(child, 0)
        write(request["status"], os.waitstatus_to_exitcode(status))
        os._exit(0)
"""


@functools.cache
def _server(preparation: str) -> subprocess.Popen:
    code = _SERVER.replace("{preparation}", preparation)
    server = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True)
    atexit.register(server.stdin.close)
    return server


class WarmPython:
    """Run code in a process of its own, with the parts of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        code: str,
        *arguments: str,
        environment: dict[str, str],
        cwd: Path | None = None,
        only_torch: bool = False,
        errors: bool = False,
    ):
        self._server = _server(_ONLY_TORCH if only_torch else _EVERYTHING)
        self._folder = Path(tempfile.mkdtemp(prefix="warm-python-"))
        paths = {name: str(self._folder / name) for name in ("stdout", "stderr", "pid", "status")}
        request = {
            "code": textwrap.dedent(code),
            "arguments": ["-c", *map(str, arguments)],
            "environment": environment,
            "cwd": str(cwd or Path.cwd()),
            "errors": errors,
        }
        self.returncode: int | None = None
        for name in ("stdout", "stderr"):  # there to be read, also of a process killed before it opens them
            (self._folder / name).touch()
        self._server.stdin.write(json.dumps(request | paths) + "\n")
        self._server.stdin.flush()

    def poll(self) -> int | None:
        if (self._folder / "status").exists():
            self.returncode = int((self._folder / "status").read_text())
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        self._wait_for("status", timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        self._wait_for("pid", 60)
        if self.poll() is None:
            os.kill(int((self._folder / "pid").read_text()), number)

    def _wait_for(self, name: str, timeout: float) -> None:
        end = time.monotonic() + timeout
        while not (self._folder / name).exists():
            assert self._server.poll() is None, "the server of processes has ended"
            assert time.monotonic() < end, f"the process has no {name} yet"
            time.sleep(0.01)

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        self.wait(timeout)
        return (self._folder / "stdout").read_text(), (self._folder / "stderr").read_text()


def start_script(script: Path, *arguments: object) -> WarmPython:
    """Start a script, as `subprocess.Popen([sys.executable, script, *arguments], text=True)` does."""
    code = "import runpy, sys\ndel sys.argv[0]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    return WarmPython(code, str(script), *map(str, arguments), environment=dict(os.environ))


def run_vitseg(*arguments: str, environment: dict[str, str], cwd: Path | None = None):
    """Run `vitseg ARGUMENTS`, as `subprocess.run(..., capture_output=True, text=True)` gives it."""
    code = "import sys\nfrom vitseg_zoo.cli import main\nsys.exit(main(sys.argv[1:]))"
    process = WarmPython(code, *arguments, environment=environment, cwd=cwd)
    return subprocess.CompletedProcess(arguments, process.wait(), *process.communicate())
