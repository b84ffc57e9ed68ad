"""The options of a recipe: a dataclass, its command line, and mistakes told in one line."""

import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import tyro
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vitseg_zoo.terminal import end_with_the_reader, printable, say

# Options that say where and for how long, not what is trained: a resumed training may change them.
_MAY_CHANGE = {
    *("out", "data", "resume", "epochs", "max_steps", "early_stopping", "num_workers"),
    *("devices", "num_nodes", "strategy", "precision", "compile", "grad_checkpointing"),
}


def option(name: str) -> str:
    """Spell a field as on the command line.

    Example:
        >>> option("batch_size")
        '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


@dataclass(kw_only=True)
class RunConfig:
    """The options that all recipes have; a recipe's own dataclass adds what it decides.

    A comment behind a field is its help on the command line.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> RunConfig(out="runs/mine", epochs=0)
        Traceback (most recent call last):
        ValueError: epochs should be 1 or more, got 0.
    """

    # Options that a recipe fills in where nobody says them; a resumed training keeps them.
    chosen: ClassVar[tuple[str, ...]] = ()

    out: Path  # folder for everything that is written
    data: Path = Path("data")  # folder of the data
    epochs: int = 50  # passes over the training images; -1 for as many as --max-steps needs
    max_steps: int = -1  # stop after so many training steps, to try things out; -1 for no limit
    early_stopping: int | None = None  # stop after so many measurements without a better mIoU
    batch_size: int = 16  # images a step and device
    accumulate_grad_batches: int = 1  # batches whose gradients make one step
    gradient_clip_val: float | None = None  # clip the norm of a step's gradients to this
    lr: float = 1e-3  # highest learning rate
    find_lr: bool = False  # say which --lr is a good one, after 100 steps at rates from 1e-6 to 1, and end
    ema: float | None = None  # decay of an average of the weights, which is then the model; None for none
    image_size: int = 256  # side of the square that images are resized to, in pixels
    overfit: int = 0  # train and measure on so many training images, to see whether they can be learned
    precision: str = "auto"  # Lightning's, as 32-true or bf16-mixed; auto takes the faster
    grad_checkpointing: bool = False  # less memory, more time
    compile: bool = False  # run the model through torch.compile
    devices: str = "auto"  # as Lightning's Trainer takes it; a number, or which, as 0,2
    num_nodes: int = 1  # machines, under torchrun or SLURM
    strategy: str = "auto"  # as Lightning's Trainer takes it: ddp, fsdp, ...
    num_workers: int | None = None  # processes that augment; by default none on a CPU
    seed: int = 0  # of weights, order and augmentation
    resume: bool = False  # go on from OUT/checkpoints/last.ckpt

    def __post_init__(self) -> None:
        self.out, self.data = Path(self.out).expanduser(), Path(self.data).expanduser()
        self.at_least(1, "batch_size", "accumulate_grad_batches", "image_size", "num_nodes", "early_stopping")
        self.at_least(0, "seed", "num_workers", "overfit")
        self.above_zero("lr", "gradient_clip_val", "ema")
        # What several recipes add.
        self.at_least(1, "crop_size")
        self.at_least(0, "freeze", "label_smoothing", "lora")
        self.above_zero("layer_decay")
        if self.max_steps != -1:
            self.at_least(1, "max_steps")
        if self.epochs != -1 or self.max_steps == -1:
            self.at_least(1, "epochs")
        if self.ema is not None and not self.ema < 1:
            raise ValueError(f"ema should be a number below 1, as 0.998, got {self.ema}.")

    def at_least(self, lowest: int, *names: str) -> None:
        """Refuse numbers below `lowest` in the fields of these names; `None` and fields not there pass."""
        for name in names:
            value = getattr(self, name, None)
            if value is not None and not value >= lowest:
                raise ValueError(f"{name} should be {lowest} or more, got {value}.")

    def above_zero(self, *names: str) -> None:
        """Refuse what is no finite number above 0 in these fields; `None` and fields not there pass."""
        for name in names:
            value = getattr(self, name, None)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} should be a number above 0, got {value}.")

    def to_json(self) -> dict[str, Any]:
        """Give the options as JSON has them."""
        return json.loads(json.dumps(asdict(self), default=str))

    def keep_chosen(self, saved: dict[str, Any]) -> None:
        """Take what a recipe chose when a training was started, where nobody says it now."""
        for name in self.chosen:
            if getattr(self, name) in (None, "auto") and name in saved:
                setattr(self, name, saved[name])

    def check_resumed(self, saved: dict[str, Any], where: Path) -> None:
        """Compare with the options that a training was started with.

        Raises:
            ValueError: If one of them that decides the result differs; the sentence names it.
        """
        for name, value in self.to_json().items():
            known = saved.get(name, value)
            if value != known and name not in _MAY_CHANGE:
                known_text = known if isinstance(known, str | int | float) else json.dumps(known)
                say = (
                    f"leave out {option(name)}"
                    if known is None
                    else f"say so with {option(name)} {known_text}"
                )
                raise ValueError(
                    f"{where} was trained with {name} {known}, not {value}: {say}, or give another --out."
                )


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f'should be a JSON object, as {{"decoder_head": "mlp"}}, got {text}')
    return value


# A dictionary that is one word on the command line: '{"decoder_head": "mlp"}'.
JsonObject = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda words: _json_object(words[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object, such as what is said of a model.

    Raises:
        ValueError: If it holds something else.
        OSError: If it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f'{path} should hold a JSON object, as {{"license": "cc0-1.0"}}.')
    return value


ConfigT = TypeVar("ConfigT", bound=RunConfig)


def from_command_line(
    config_class: type[ConfigT],
    description: str | None = None,
    args: list[str] | None = None,
    program: str | None = None,
) -> ConfigT:
    """Read a recipe's options from the command line, by tyro.

    Args:
        config_class: The recipe's dataclass.
        description: What `--help` says first, the recipe's docstring.
        args: Words of the command line; those of the program by default.
        program: Name of the program in its help, the file's by default.

    Returns:
        The options.

    Raises:
        SystemExit: With status 2 after one line on the error stream, if a word is not understood or a value
            out of range; with 0 after `--help`.

    Example:
        >>> from_command_line(RunConfig, args=["--out", "runs/mine", "--epochs", "3"]).epochs
        3
    """
    shown = io.StringIO()
    try:
        with redirect_stderr(shown):
            return tyro.cli(
                config_class,
                prog=program,
                description=description,
                args=args,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
            )
    except SystemExit as stop:
        if stop.code:
            say(_one_line(shown.getvalue()), file=sys.stderr)
        raise


def _one_line(box: str) -> str:
    """Give the sentences of tyro's framed message in one line: the mistake, and the nearest match."""
    _title, *lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    lines = [line.strip(" │|") for line in lines]
    lines = [line for line in lines if line and not line.startswith("╰") and not line.endswith("---")]
    parts, near = [], None
    for line in lines:
        if line.startswith(("For full helptext", "Argument helptext")):
            break
        if line.startswith(("Perhaps you meant", "Arguments similar to")):
            near = ""
        elif near == "":
            near = line.split()[0]
        elif near is None and not line.startswith("──"):
            parts.append(line)
    hint = f" Did you mean {near}?" if near else ""
    text = " ".join(parts).rstrip(".:") + "." + hint + " See --help."
    # Of a dataclass's own check: the field becomes its option.
    return re.sub(r"^Error parsing \w+: (\w+)", lambda found: "--" + found[1].replace("_", "-"), text)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line for a user's mistake; what goes wrong inside a training keeps its trace.

    Example:
        >>> with one_line_errors():
        ...     raise ValueError("--epochs is too small.")
        Traceback (most recent call last):
        SystemExit: --epochs is too small.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    # TypeError: an argument that a model does not take, or Lightning's for --devices.
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        if getattr(error, "inside_training", False):
            raise
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        # SMP would list hundreds of encoders; some libraries' messages have several lines.
        message = " ".join(message.partition(", supported encoders")[0].split())
        raise SystemExit(printable(message)) from error


def run_from_command_line(
    main: Callable[[ConfigT], Any], config_class: type[ConfigT], description: str | None = None
) -> None:
    """Run a recipe as a program: `main` with the options of the command line, mistakes in one line."""
    with end_with_the_reader():  # `--help | head`; a training says that it could not print
        config = from_command_line(config_class, description)
    with one_line_errors():
        main(config)
