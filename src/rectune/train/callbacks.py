"""What is called back while a run trains: the log, when to stop, generated answers, trackers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rectune.config import Config
from rectune.model.load import Loaded
from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer
from rectune.train.transcript import Transcript

if TYPE_CHECKING:
    from rectune.train.generations import Generations
    from rectune.train.monitor import RunLog
    from rectune.train.stopping import BestAndStop


@dataclass(frozen=True)
class Callbacks:
    """The callbacks of a run, in the order in which the Trainer calls them.

    Attributes:
        log: files and terminal.
        stopping: keeps the best adapter and ends the run.
        generations: greedy answers at each evaluation, or None.
        trackers: TensorBoard and the like.
    """

    log: RunLog
    stopping: BestAndStop
    generations: Generations | None
    trackers: list[Any]

    def all(self) -> list[Any]:
        """Every one of them, first the log, so that all others may add to what it has said."""
        return [self.log, self.stopping, *([self.generations] if self.generations else []), *self.trackers]


def make_callbacks(
    config: Config,
    loaded: Loaded,
    model: Any,
    held_out: Trees,
    verbalizer: Verbalizer,
    labels_per_step: float,
    first_step: int | None,
    keep: Callable[[int, float], str],
    transcript: Transcript,
    console: Console,
) -> Callbacks:
    """The callbacks that the configuration asks for.

    Args:
        config: all keys.
        loaded: the base model, for its tokenizer and attention kernel.
        model: the adapted model.
        held_out: the validation prompts.
        verbalizer: label words and tokens.
        labels_per_step: answers trained by one optimiser step.
        first_step: when resuming, the first step that will be taken again.
        keep: saves the adapter as it is now as the best one and returns its folder.
        transcript: says lines and keeps them.
        console: shows progress.
    """
    from rectune.train.generations import Generations
    from rectune.train.monitor import RunLog, tensorboard_callback
    from rectune.train.stopping import BestAndStop

    say = transcript.say
    logs = config.output_dir / "logs"
    log = RunLog(logs, console, labels_per_step, transcript.note)
    stopping = BestAndStop(
        config.metric_for_best_model,
        config.early_stopping_patience,
        config.loss_plateau_patience,
        config.loss_plateau_min_delta,
        keep,
        say,
    )
    generations = None
    if config.gen_eval_samples:
        generations = Generations(
            logs / "generations.txt", model, held_out, config.gen_eval_samples, loaded.tokenizer, verbalizer,
            config.per_device_eval_batch_size, loaded.attention, say,
        )  # fmt: skip
    trackers = []
    if config.report_to == "tensorboard":
        trackers.append(tensorboard_callback(logs, first_step))
        say(f"watch: tensorboard --logdir {logs}")
    return Callbacks(log, stopping, generations, trackers)
