"""`rectune run`: one command from ratings to a report."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from rectune.config import Config, load_config
from rectune.config_classify import CLASSIFY
from rectune.errors import ConfigError

Say = Callable[[str], None]


def _changed_keys(config: Config, run: Path) -> list[str]:
    """Keys in which a run's saved configuration differs from this one.

    Epochs added by --extra-epochs do not count, nor does what a sweep would vary.
    """
    from rectune.train.start import asked_epochs

    before, now = load_config(run).model_dump(mode="json"), config.model_dump(mode="json")
    asked = asked_epochs(run)
    before["num_train_epochs"] = before["num_train_epochs"] if asked is None else asked
    return [key for key in now if before[key] != now[key] and key != "sweep"]


def _trained_already(config: Config, resume: bool, overwrite: bool) -> bool:
    """Whether `output_dir` holds the finished run of this very configuration.

    Raises:
        ConfigError: it holds a finished run of another one.
    """
    from rectune.train.start import is_finished

    run = config.output_dir
    if resume or overwrite or not is_finished(run):
        return False
    changed = _changed_keys(config, run)
    if changed:
        raise ConfigError(
            f"output_dir: {run} holds a finished run with another {', '.join(changed)}; "
            "set output_dir=OTHER, or start over with --overwrite"
        )
    return True


def _cut_off(config: Config, resume: bool, overwrite: bool) -> bool:
    """Whether `output_dir` holds an unfinished run of this very configuration, which needs no word to go on."""
    from rectune.train.checkpoints import checkpoint_folders
    from rectune.train.start import is_finished

    run = config.output_dir
    if resume or overwrite or is_finished(run) or not (run / "config.yaml").is_file() or not checkpoint_folders(run):
        return False
    return not _changed_keys(config, run)


def _program() -> str:
    """What to type for this program: its name where the shell finds it, else its path as it was typed."""
    typed = Path(sys.argv[0])
    if shutil.which("rectune") is not None or typed.name != "rectune":
        return "rectune"
    return shlex.quote(str(typed))


def _say_next(run: Path, say: Say, config: Config | None = None) -> None:
    """Commands that go on from here, as they are typed; other ones for a run that classifies texts."""
    import torch

    program, folder = _program(), shlex.quote(str(run))
    commands = [
        (f"{program} score {folder} --demo", "one prompt, base beside tuned"),
        (f"{program} compare {folder}", "which answers changed, row by row"),
        (f"{program} inspect demo_cpu", "the prompts, token by token"),
    ]
    if torch.cuda.is_available():
        commands.append((f"{program} run qwen3_movielens_qlora", "Qwen3-0.6B on MovieLens, for a 24 GB card"))
    if config is not None and config.task == CLASSIFY:
        asked = (f"{program} score {folder} --text 'some text'", "the class of a text, and how sure that is")
        commands = [asked] if len(config.classes) > 2 else [asked, commands[1]]
    width = max(len(command) for command, _ in commands)
    say("\nnext:")
    for command, meaning in commands:
        say(f"  {command:<{width}}   {meaning}")


def run_all(
    config: Config, resume: bool, overwrite: bool, say: Say, console: Console, ignore_plan: bool = False
) -> None:
    """Prepare, train, evaluate and report; a stage that is done already is not done again.

    Args:
        config: all keys.
        resume: go on from the latest checkpoint; an unfinished run of this very configuration does so by itself.
        overwrite: remove an earlier run in `output_dir`.
        say: prints one line.
        console: shows progress and the table.
        ignore_plan: train where the plan says that it does not fit the memory.
    """
    from rectune.report.evaluate import evaluate
    from rectune.train.start import Resume
    from rectune.train.train import train

    begun = time.perf_counter()

    def head(number: int, title: str) -> None:
        say(f"\n[{number}/3] {title}  ({time.perf_counter() - begun:.0f} s)")

    head(1, "prepare the data")
    from rectune.prompt.dataset import open_dataset

    open_dataset(config, say)
    head(2, "train")
    if _trained_already(config, resume, overwrite):
        say(f"{config.output_dir}: already trained with this configuration; --overwrite trains again")
    else:
        cut_off = _cut_off(config, resume, overwrite)
        if cut_off:
            say(f"{config.output_dir}: an unfinished run with this configuration, so it goes on")
        train(config, say, console, Resume(latest=resume or cut_off), overwrite=overwrite, ignore_plan=ignore_plan)
    head(3, "evaluate on test, untuned beside tuned")
    found = evaluate(config.output_dir, [], "test", "logits", True, say, console)
    say(f"\nreport: {found.page}")
    say(f"done in {time.perf_counter() - begun:.0f} s")
    _say_next(config.output_dir, say, config)
