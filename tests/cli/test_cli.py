"""`vitseg` itself: its help, and what it says where a package is missing."""

import os
import subprocess
import sys
import textwrap

import pytest
from warm_python import WarmPython

from vitseg_zoo.cli import COMMANDS, load_command, main


def test_help_groups_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    groups = dict(part.split(":\n", 1) for part in capsys.readouterr().out.split("\n\n") if ":\n  " in part)
    for group, commands in COMMANDS.items():
        assert [line.split()[0] for line in groups[group].splitlines()] == list(commands)


@pytest.mark.parametrize("name", [name for commands in COMMANDS.values() for name in commands])
def test_each_command_shows_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith(f"usage: vitseg {name} ")


@pytest.mark.parametrize("arguments", [[], ["no-such-command"]])
def test_a_wrong_command_ends_with_what_there_is(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("usage: vitseg [-h] COMMAND ...\nvitseg: error: ")


@pytest.mark.parametrize(
    "command, module, extra",
    [("quickstart", "lightning.pytorch", "train"), ("bench segformer --quick", "transformers", "bench")],
)
def test_a_missing_extra_is_named(command: str, module: str, extra: str) -> None:
    code = f"""
        import sys
        sys.modules[{module!r}] = None  # importing it fails
        from vitseg_zoo.cli import main
        sys.exit(main({command.split()}))
    """
    process = WarmPython(code, environment=dict(os.environ))
    package, name = module.partition(".")[0], command.split()[0]
    assert process.communicate()[1] == (
        f"vitseg {name}: needs {package}, which is not installed: "
        f'pip install "vitseg-zoo[{extra}]" brings it.\n'
    )
    assert process.returncode == 1


def test_a_missing_extra_is_named_where_a_subprocess_imports_it(tmp_path, capsys) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            sys.modules["onnxscript"] = None  # spawned processes run this, too

            import vitseg_zoo.cli
            from vitseg_zoo.cli.bench_segformer import _in_a_new_process

            if __name__ == "__main__":
                info = vitseg_zoo.cli.load_command("info")
                info.run = lambda args: _in_a_new_process(__import__, "onnxscript")
                sys.exit(vitseg_zoo.cli.main(["info", "anything"]))
            """
        )
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == (
        'vitseg info: needs onnxscript, which is not installed: pip install "vitseg-zoo[export]" brings it.\n'
    )


def test_a_module_of_the_package_itself_that_is_missing_is_a_defect(monkeypatch) -> None:
    monkeypatch.setattr(load_command("info"), "run", lambda args: __import__("vitseg_zoo.no_such_module"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main(["info", "anything"])
