"""The trainings of a comparison: which there should be, which are done, and the others, one by one."""

import gc
import importlib
import importlib.util
import json
import re
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING

from vitseg_zoo.training.config import RunConfig, from_command_line
from vitseg_zoo.training.pictures import read_metrics
from vitseg_zoo.training.results import read_results

# Where neither the user nor the recipe names an encoder: a small one.
_ENCODERS = {
    "vitseg": "vz-vitseg_small_patch16_128",
    "segmenter": "vz-vitseg_small_patch16_128",
    "eomt": "vz-vitseg_small_patch16_128",
    "fusedsegformer": "vz-mit_b0",
    "segnet": "segnet",
    "segnetdsc": "segnetdsc",
}


@dataclass
class Training:
    """A training that a comparison needs.

    Args:
        name: Of the model, as the user named it.
        recipe: The module that trains it.
        config: Its options.
        words: The same as words of a command line.
        error: Why it failed, if it did.
    """

    name: str
    recipe: ModuleType
    config: Any
    words: list[str]
    error: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether results.json is that of these options."""
        try:
            known = read_results(self.config.out / "results.json")["config"]
        except (OSError, ValueError, KeyError, AttributeError):
            return False
        return all(known.get(key) == getattr(self.config, key) for key in ("epochs", "max_steps"))

    @property
    def epochs_done(self) -> int:
        """Number of epochs in metrics.csv."""
        metrics = self.config.out / "metrics.csv"
        return len(read_metrics(metrics).get("epoch", [])) if metrics.is_file() else 0


def plan(recipe: str, models: str, seeds: str, out: Path, options: Sequence[str] = ()) -> list[Training]:
    """List the trainings of all models with all seeds, each in a folder of its own.

    Args:
        recipe: Name of a recipe, or the path of a file like one: with a dataclass `Config` of `RunConfig`'s
            kind, which has `arch` and `encoder_name`, and `main(config)`.
        models: `"arch"` or `"arch:encoder"`, separated by commas.
        seeds: Whole numbers, separated by commas.
        out: Folder of the folders.
        options: Further words of the recipe's command line.

    Returns:
        The trainings, those of the first seed first.

    Raises:
        ValueError: If there is no such recipe, a name or a number is none, a folder holds a training with
            other options, or two models would share a folder.
        SystemExit: With one line, if the recipe does not understand its options.
    """
    module = load_recipe(recipe)
    names = [name.strip() for name in models.split(",") if name.strip()]
    if not names:
        raise ValueError('name what to train: --models "segnet, unet:resnet18".')
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds should be whole numbers separated by commas, got {seeds!r}.") from None
    known = {field.name: field.default for field in fields(module.Config)}
    if not {"arch", "encoder_name", "seed", "out"} <= known.keys():
        raise ValueError(f"{recipe} does not choose a model by --arch and --encoder-name.")
    chooses = known["encoder_name"] is None  # the recipe knows one for each architecture
    trainings, folders = [], set()
    for seed in dict.fromkeys(numbers):
        for name in dict.fromkeys(names):
            arch, _, encoder = name.partition(":")
            if arch not in MODEL_ARCHITECTURES_MAPPING:
                known_archs = ", ".join(sorted(MODEL_ARCHITECTURES_MAPPING))
                raise ValueError(f"there is no architecture {arch!r}, only {known_archs}.")
            folder = out / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-seed-{seed}"
            if folder in folders:
                raise ValueError(f"two of the models would be trained into {folder}: name one only.")
            folders.add(folder)
            if not encoder and not chooses:
                encoder = _ENCODERS.get(arch, "resnet18")
            words = ["--out", str(folder), "--arch", arch, *(["--encoder-name", encoder] if encoder else [])]
            words += ["--seed", str(seed), *options]
            # Each on one device, so that none starts other processes in the middle of a comparison.
            words += [] if "--devices" in words else ["--devices", "1"]
            config = from_command_line(
                module.Config, module.__doc__, words, f"vitseg compare --train {recipe}"
            )
            trainings.append(Training(name, module, config, words))
    for training in trainings:
        saved = training.config.out / "config.json"
        if saved.is_file():  # what the recipe chose then, where nobody says it now, is chosen
            before = _read_json(saved)
            training.config.keep_chosen(before)
            training.config.check_resumed(before, training.config.out)
    return trainings


def load_recipe(name: str) -> ModuleType:
    """Import a recipe of the package by its name, or any by the path of its file.

    Raises:
        ValueError: If there is none, or it has no `Config` and `main`.
    """
    if name.endswith(".py"):
        # A name that no other module has.
        spec = importlib.util.spec_from_file_location(f"recipe_{Path(name).stem}", name)
        if spec is None or spec.loader is None or not Path(name).is_file():
            raise ValueError(f"there is no recipe {name}.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses and the workers of loaders look
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(f"vitseg_zoo.recipes.{name}")
        except ModuleNotFoundError as error:
            if name not in str(error.name):
                raise
            raise ValueError(f"there is no recipe {name!r}: `vitseg recipe` lists them.") from None
    if not (hasattr(module, "main") and issubclass(getattr(module, "Config", object), RunConfig)):
        raise ValueError(f"{name} has no Config of options and no main(config), as recipes have.")
    return module


def train_all(trainings: Sequence[Training], say: Callable[[str], None]) -> list[Training]:
    """Train what is not finished, one after the other, in this process.

    A training that fails stops no other. Killed at any moment, the same call goes on where it stopped.

    Args:
        trainings: What `plan` returned.
        say: Is told what will be done, and how much time is left.

    Returns:
        Those that failed, with their `error`.
    """
    missing = [training for training in trainings if not training.is_finished]
    say(f"{len(trainings)} training{'s' * (len(trainings) != 1)}, {len(missing)} of them to be made:")
    for training in trainings:
        say(f"  {training.name}, seed {training.config.seed}: {_state(training)}")
    failed = []
    for number, training in enumerate(missing, start=1):
        left = time_left(missing[number - 1 :], trainings)
        say("")
        say(
            f"training {number} of {len(missing)}: {training.name}, seed {training.config.seed}"
            + (f"; about {timedelta(seconds=round(left))} left for all" if left is not None else "")
        )
        # Killed before its first checkpoint, a training begins again.
        resume = (training.config.out / "config.json").is_file()
        try:
            with _program(training):
                training.recipe.main(replace(training.config, resume=resume))
        except Exception as error:
            if getattr(error, "inside_training", False) or not isinstance(error, _TOLD):
                traceback.print_exc()
            text = str(error.args[0] if isinstance(error, KeyError) else error)
            training.error = " ".join(text.partition(", supported encoders")[0].split())
            say(f"failed: {training.error}")
            failed.append(training)
        gc.collect()  # a Trainer and its module hold each other, and the GPU's memory
    return failed


# What a user's options, model, data or machine may do: a sentence says it.
_TOLD = (OSError, ValueError, KeyError, TypeError, RuntimeError, MisconfigurationException)


def _state(training: Training) -> str:
    if training.is_finished:
        return "finished"
    done, epochs = training.epochs_done, training.config.epochs
    return f"epoch {done} of {epochs}" if done else f"{epochs} epochs" if epochs else "to be begun"


def time_left(missing: Sequence[Training], known: Sequence[Training]) -> float | None:
    """Guess how long trainings will take, from the epochs of the same model so far, or of the others.

    Args:
        missing: What is to be made.
        known: All, whose epochs so far count.

    Returns:
        Seconds; None where nothing was trained yet.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    for training in known:
        metrics = training.config.out / "metrics.csv"
        seconds[training.name] += read_metrics(metrics).get("seconds", []) if metrics.is_file() else []
    everything = [mean(values) for values in seconds.values() if values]
    if not everything:
        return None
    # Where the recipe is still to choose, as many as it chose for the others.
    usual = max([training.config.epochs or 0 for training in known])
    return sum(
        max((training.config.epochs or usual) - training.epochs_done, 0)
        * mean(seconds[training.name] or everything)
        for training in missing
    )


@contextmanager
def _program(training: Training) -> Iterator[None]:
    """Let results.json say with which command the recipe does the same by itself."""
    argv = sys.argv
    sys.argv = [Path(str(training.recipe.__file__)).name, *training.words]
    try:
        yield
    finally:
        sys.argv = argv


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove its folder, or give another --out.") from error
