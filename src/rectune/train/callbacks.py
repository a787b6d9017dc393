"""What is called back while a run trains: the log, when to stop, generated answers, the panel, trackers, the meter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rectune.config import Config
from rectune.model.load import Loaded
from rectune.prompt.dataset import Dataset
from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer
from rectune.train.transcript import Transcript
from rectune.world import ALONE, World

if TYPE_CHECKING:
    from rectune.train.generations import Generations
    from rectune.train.monitor import RunLog
    from rectune.train.panel import Panel
    from rectune.train.record import RunRecord
    from rectune.train.speed import Meter
    from rectune.train.stopping import BestAndStop
    from rectune.train.trainer import Validation

Say = Callable[[str], None]


@dataclass(frozen=True)
class Callbacks:
    """The callbacks of a run, in the order in which the Trainer calls them.

    Attributes:
        log: files and terminal; None in all but the main process.
        stopping: keeps the best adapter and ends the run.
        generations: greedy answers at each evaluation, or None.
        panel: the same few events at each evaluation, or None.
        trackers: TensorBoard and the like.
        meter: how fast it goes; stands behind all others.
    """

    log: RunLog | None
    stopping: BestAndStop
    generations: Generations | None
    panel: Panel | None
    trackers: list[Any]
    meter: Meter

    def all(self, *others: Any) -> list[Any]:
        """Every one of them and others: first the log, so that all others may add to what it has said."""
        asked = (self.log, self.stopping, self.generations, self.panel)
        return [*(one for one in asked if one is not None), *self.trackers, *others, self.meter]

    def __enter__(self) -> Callbacks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give the terminal back and end the trackers' entries, however the run ended."""
        if self.log is not None:
            self.log.close()
        for tracker in self.trackers:
            if hasattr(tracker, "close"):
                tracker.close(failed=kind is not None)


def make_callbacks(
    config: Config,
    data: Dataset,
    loaded: Loaded,
    model: Any,
    held_out: Trees,
    validation: Validation | None,
    verbalizer: Verbalizer,
    shift: float,
    record: RunRecord,
    first_step: int | None,
    keep: Callable[[int, float], str],
    transcript: Transcript,
    console: Console,
    world: World = ALONE,
) -> Callbacks:
    """The callbacks that the configuration asks for.

    Args:
        config: all keys.
        data: the dataset, for the panel.
        loaded: the base model, for its tokenizer and attention kernel.
        model: the adapted model.
        held_out: the validation prompts.
        validation: their latest scores; None when there is no evaluation.
        verbalizer: label words and tokens.
        shift: what class weights add to the log-odds.
        record: told where the run stands.
        first_step: when resuming, the first step that will be taken again.
        keep: saves the adapter as it is now as the best one and returns its folder.
        transcript: says lines and keeps them.
        console: shows progress.
        world: the processes, of which only the main one tells and writes.
    """
    from rectune.train.generations import Generations
    from rectune.train.monitor import RunLog
    from rectune.train.panel import Panel
    from rectune.train.stopping import BestAndStop
    from rectune.train.trackers import make_trackers, text_writer

    say = transcript.say
    logs = config.output_dir / "logs"
    evaluation_tokens = int(held_out.lengths.sum()) if validation is not None else 0
    meter = make_meter(config, loaded, model, evaluation_tokens, say, world.size)
    stopping = BestAndStop(
        config.metric_for_best_model,
        config.early_stopping_patience,
        config.loss_plateau_patience,
        config.loss_plateau_min_delta,
        keep,
        say,
    )
    if not world.main:
        return Callbacks(None, stopping, None, None, [], meter)
    generations = None
    if config.gen_eval_samples:
        generations = Generations(
            logs / "generations.txt", model, held_out, config.gen_eval_samples, loaded.tokenizer, verbalizer,
            config.per_device_eval_batch_size, loaded.attention, say,
        )  # fmt: skip
    trackers = make_trackers(config, first_step, say)
    panel = None
    if config.panel_samples and validation is not None:
        panel = Panel(
            logs, data, validation, config.panel_samples, config.seed, shift, say, text_writer(trackers), config.classes
        )
    log = RunLog(logs, console, meter, record, transcript.note)
    return Callbacks(log, stopping, generations, panel, trackers, meter)


def make_meter(
    config: Config, loaded: Loaded, model: Any, evaluation_tokens: int, say: Say, processes: int = 1
) -> Meter:
    """What measures speed, with the model's operations and the device's peak where both are known.

    Args:
        config: all keys.
        loaded: the base model, for device and precision.
        model: the adapted model.
        evaluation_tokens: tokens of an evaluation.
        say: prints one line.
        processes: how many compute, each on a device of its own.
    """
    from rectune.model.flops import peak_operations, training_work
    from rectune.train.speed import Meter

    work = training_work(model, 2 if config.loss_over == "labels" else None)
    peak = peak_operations(loaded.device, loaded.dtype) if work is not None else None
    if work is not None and peak is not None:
        say(
            f"speed: {work.per_token / 1e9:.2f} GFLOP a token and attention; utilisation (mfu) is of "
            f"{peak[0] / 1e12:.2f} TFLOP/s, {peak[1]}"
        )
    return Meter(loaded.device, work, peak[0] * processes if peak else None, evaluation_tokens, say)
