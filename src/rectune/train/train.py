"""The stage from token trees and a base model to a run folder with the best adapter."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from rich.console import Console

from rectune.baselines.blended import fit_served
from rectune.baselines.prior import prior_of
from rectune.baselines.served import Served
from rectune.config import Config
from rectune.data.columns import TRAIN, VALIDATION
from rectune.errors import ConfigError, NotFinite
from rectune.files import atomic_folder, write_json, write_text
from rectune.launched import join_world, name_of_process
from rectune.lock import run_lock
from rectune.model.classifier import for_answers
from rectune.model.load import load_tokenizer
from rectune.model.lora import seal_adapter
from rectune.model.losses import loss_of
from rectune.prompt.cache import clear_cache
from rectune.prompt.dataset import Dataset, open_dataset
from rectune.prompt.encode import encode, split_sample
from rectune.prompt.layouts import prompts_for
from rectune.prompt.pieces import Pieces
from rectune.prompt.tree import Trees
from rectune.score.joined import joined_rows
from rectune.score.settings import AdapterSettings, settings_of
from rectune.terminal import outlive_terminal
from rectune.train.accord import check_processes, check_seen, check_world
from rectune.train.adapter import adapted_model
from rectune.train.arguments import check_optimizer, planned_steps, say_paging, trainer_arguments
from rectune.train.backends import load_for_training, prepare_backend, trainer_of
from rectune.train.callbacks import make_callbacks
from rectune.train.checkpoints import PROCESSES_FILE, checkpoint_folders, evaluation_pending
from rectune.train.halving import Halving
from rectune.train.oversample import oversampled
from rectune.train.plan import Machine, planned
from rectune.train.publish import VALIDATION_PREDICTIONS, check_best, publish, publish_tokenizer, what_is_kept
from rectune.train.record import RunRecord
from rectune.train.refusal import no_trace_of_refusal
from rectune.train.shortage import full_disk, shortages
from rectune.train.start import (
    BEST,
    HISTORY,
    KEPT,
    Beginning,
    Resume,
    check_same_data,
    empty,
    go_back,
    prepare_start,
    save_config,
    say_banner,
)
from rectune.train.trackers import check_trackers
from rectune.train.transcript import Transcript
from rectune.train.workload import check_classes, packs_of, workload_of
from rectune.world import World

if TYPE_CHECKING:
    from rectune.train.stopping import StopSignals

Say = Callable[[str], None]


def _predictions(data: Dataset, trees: Trees, log_odds: Any) -> pl.DataFrame:
    from rectune.score.predictions import class_frame, prediction_frame

    place = np.argsort(trees.rows, kind="stable")  # as the evaluation of the saved adapter has them
    return (prediction_frame if log_odds.ndim == 1 else class_frame)(data, trees.rows[place], log_odds[place])


def _calibrated(
    settings: AdapterSettings,
    held_out: Trees,
    validation: Any,
    joining: Mapping[str, Served],
    joined: Mapping[str, Any],
    say: Say,
) -> AdapterSettings:
    """The settings with blend, temperature, offset and threshold fitted on the validation scores, if enough."""
    from rectune.score.calibrate import calibrate

    if validation is None or validation.log_odds is None:
        return settings
    return calibrate(settings, held_out.labels, validation.log_odds, joining, joined, say)


def train(
    config: Config,
    say: Say,
    console: Console,
    resume: Resume | None = None,
    clear: bool = False,
    overwrite: bool = False,
    watchers: Sequence[Any] = (),
    ignore_plan: bool = False,
    rehearsal: bool = False,
) -> Path:
    """Train an adapter and leave the best one, with its tokenizer and settings, at the root of `output_dir`.

    Args:
        config: all keys.
        say: prints one line.
        console: shows progress.
        resume: how to start; a fresh run when None.
        clear: tokenise again even where the cache holds the prompts.
        overwrite: remove a run that already lies in `output_dir`.
        watchers: callbacks of the caller's own, called after the run's.
        ignore_plan: go on where the plan says that the run does not fit the memory.
        rehearsal: train on the longest rows only, `max_steps` steps of them, which take the most memory.

    Returns:
        The run folder.

    Raises:
        RectuneError: see the stages' own errors.
        Interrupted: a signal came; a checkpoint was saved.
    """
    prepare_backend(config, say)
    from rectune.train.stopping import StopSignals

    if config.blend and config.eval_strategy == "no":
        raise ConfigError(
            "blend: its weights are fitted on validation, but eval_strategy is no; use steps or epoch, or train "
            "without blend and run `rectune calibrate` afterwards"
        )
    check_trackers(config)
    check_optimizer(config)
    resume = resume or Resume()
    if resume.extra_epochs and config.max_steps > 0:
        raise ConfigError("--extra-epochs: max_steps decides the length of this run; raise max_steps instead")
    check_processes(config, rehearsal)
    world = join_world()
    with world.closing(), world.one_fate():
        if not world.main:
            return _follow(config, ignore_plan, world, say)
        transcript = Transcript(say)
        record = RunRecord(config.output_dir / "logs")
        with (
            run_lock(config.output_dir, transcript.say),
            outlive_terminal() as terminal,
            StopSignals(transcript.say, terminal, world) as signals,
            no_trace_of_refusal(config.output_dir, record, terminal),
            transcript.last_words(),
            record,
            world.one_fate(),  # so that what stands above notes the reason and not what it led to here
            full_disk(config.output_dir),
        ):
            check_world(config, world, transcript.say)
            begin = world.from_main(
                "start", lambda: prepare_start(config, resume, overwrite, transcript.say, world.size)
            )
            return _train(
                begin, console, transcript, record, signals, clear, overwrite, watchers, ignore_plan, rehearsal, world
            )


def _follow(config: Config, ignore_plan: bool, world: World, say: Say) -> Path:
    """What all but the main process do: the same, but that one speaks for them and writes."""
    from rectune.train.stopping import StopSignals

    def aloud(line: str) -> None:
        say(f"{name_of_process()}{line}")

    transcript = Transcript(lambda line: None)
    with outlive_terminal() as terminal, StopSignals(transcript.say, terminal, world) as signals:
        begin: Beginning = world.from_main("start")
        record = RunRecord(config.output_dir / "logs")
        quiet = Console(quiet=True)
        return _train(begin, quiet, transcript, record, signals, False, False, (), ignore_plan, False, world, aloud)


def _train(
    begin: Beginning,
    console: Console,
    transcript: Transcript,
    record: RunRecord,
    signals: StopSignals,
    clear: bool,
    overwrite: bool,
    watchers: Sequence[Any],
    ignore_plan: bool,
    rehearsal: bool,
    world: World,
    aloud: Say | None = None,
) -> Path:
    """Train from a beginning that was found good, under the run folder's lock.

    Args other than those of `train`:
        world: the processes; what is written is written by the main one.
        aloud: prints a line that only this process can say, where `transcript` says nothing.
    """
    from peft import load_peft_weights, set_peft_model_state_dict
    from transformers import TrainerState

    from rectune.model.sharding import mesh_of, shard_blocks
    from rectune.train.batches import TrainingCollator
    from rectune.train.checkup import Checkup, facts_of
    from rectune.train.not_finite import BatchNames
    from rectune.train.stopping import Interrupted
    from rectune.train.trainer import Validation, classes_of

    config, start, say = begin.config, begin.checkpoint, transcript.say
    run = config.output_dir
    aloud = aloud or say
    if begin.in_place and world.main:  # otherwise nothing is touched before data and model are found good
        save_config(config, begin.asked)
        transcript.open(run)
    with world.main_first("data"):
        data = open_dataset(config, say)
    if start is not None:
        check_seen(start, world)
        check_same_data(start, data.content_hash)
    # A kernel or a precision that is not to be had is said before anything is tokenised.
    machine = Machine.of(config, world=world)
    with world.main_first("tokens"):
        if clear:
            clear_cache(config, say)
        prompts = prompts_for(config, Pieces(load_tokenizer(config, say)))
        trees, held_out = (
            encode(config, data.table, data.catalog, data.content_hash, prompts, rows, say, training=split == TRAIN)
            for split in (TRAIN, VALIDATION)
            for rows in (split_sample(config, data.table, split),)
        )
    many = len(config.classes) > 2
    natural, sampled = trees, oversampled(config, trees.labels, say)
    if config.oversample != "none":
        trees = trees.select(sampled.rows)
    answer_loss = replace(loss_of(config, trees.labels, say), sampling=0.0 if many else sampled.log_odds)
    say(
        f"data: {len(trees.labels):,} training and {len(held_out.labels):,} validation events in {len(trees):,} and "
        f"{len(held_out):,} sequences; mean {trees.lengths.mean():.0f} tokens a sequence, "
        f"{len(trees.tokens) / len(trees.labels):.1f} a label"
    )
    check_classes(trees)
    packs = packs_of(config, trees, say, rehearsal)
    plan = planned(config, workload_of(config, trees, held_out, packs), machine, ignore_plan, say)
    sharing = mesh_of(world, machine.device) if world.sharded else None
    with world.in_turn("model") if world.sharded else world.main_first("model"):
        loaded = load_for_training(config, say, hold=world.sharded)
        say_paging(config, loaded.device.type, say)
        loaded = for_answers(config, loaded, prompts.verbalizer, say)
        stack, _ = prior_of(config, data.table, data.catalog, data.content_hash, say)
        cache, blend = config.preprocessing_cache_dir, config.blend if world.main else []
        joining = fit_served(blend, data.table, data.catalog, data.content_hash, cache, say)
        settings = settings_of(
            config, prompts.verbalizer, loaded.source, loaded.revision, str(loaded.dtype).removeprefix("torch."),
            data.content_hash, data.table, {} if stack is None else {"stack": stack},
        )  # fmt: skip
        settings = settings.with_loss_shift(answer_loss.shift)
        settings = replace(settings, class_shift=sampled.shift.tolist()) if many else settings
        joined = joined_rows(joining, data, held_out.rows.astype(np.int64))
        model = adapted_model(config, loaded, settings, prompts.verbalizer, say)
        if sharing is not None:
            shard_blocks(model, sharing, loaded.device)
    validation = None
    if config.eval_strategy != "no":
        validation = Validation(held_out, data.users(held_out.rows), classes=classes_of(config, sampled.shift))

    # Where the model is sharded, all processes must make as many passes.
    halving = Halving(config.auto_batch and not world.sharded, aloud, start.folder if start else None)
    if plan is not None and plan.in_parts() and machine.device.type == "cpu" and not ignore_plan:
        halving.begin_with(plan.rows_at_once())

    def keep(step: int, value: float) -> str:
        if not world.main:
            return str(run / BEST)
        with atomic_folder(run / BEST) as folder:
            model.save_pretrained(folder)
            seal_adapter(folder)
            calibrated = settings if many else _calibrated(settings, held_out, validation, joining, joined, say)
            calibrated.save(folder)
            shown = None if math.isnan(value) else value
            write_json(folder / "step.json", {"step": step, config.metric_for_best_model: shown})
            if validation is not None and validation.log_odds is not None:
                _predictions(data, held_out, validation.log_odds).write_parquet(folder / VALIDATION_PREDICTIONS)
        return str(run / BEST)

    def saved(folder: Path) -> None:
        write_text(folder / "config.yaml", config.to_yaml())
        settings.save(folder)
        seal_adapter(folder)
        halving.save(folder)
        if not world.alone:
            write_json(folder / PROCESSES_FILE, {"processes": world.size})
        if (run / BEST).is_dir():
            shutil.copytree(run / BEST, folder / KEPT / BEST, dirs_exist_ok=True)

    if world.main:
        if not begin.in_place:
            if overwrite:
                empty(run)
            save_config(config, begin.asked)
            transcript.open(run)
        go_back(run, start)
    world.meet("ready")
    if start is not None:
        say_banner(start, say)
    last = planned_steps(config, len(packs), config.num_train_epochs, world.size)
    called = make_callbacks(
        config, data, loaded, model, held_out, validation, prompts.verbalizer, answer_loss.shift, record,
        start.step + 1 if start else None, keep, transcript, console, world,
    )  # fmt: skip
    facts = facts_of(config, natural, held_out, len(set(data.users(held_out.rows))), last)
    checkup = Checkup(run / "logs", facts, say, lambda: signals.stopped)
    diagnosing = world.main and not many
    if many:
        say("diagnosis: left out, since its rules are made for two classes")
    trainer = trainer_of(config)(
        verbalizer=prompts.verbalizer,
        attention=loaded.attention,
        answer_loss=answer_loss,
        lr_ratio=config.loraplus_lr_ratio,
        with_end=config.ends_answers,
        validation=validation,
        save_total_limit=config.save_total_limit,
        start=start.folder if start else None,
        on_saved=saved,
        cutting=signals.cutting,
        look=None if world.alone else signals.look,
        world=world,
        halving=halving,
        name_batch=BatchNames(trees, data),
        meter=called.meter,
        model=model,
        args=trainer_arguments(config, config.num_train_epochs, say),
        train_dataset=packs,
        eval_dataset=range(len(held_out)),  # evaluate() reads `validation`; the Trainer only wants to see one
        data_collator=TrainingCollator(trees, prompts.verbalizer, config.ends_answers),
        processing_class=loaded.tokenizer,
        callbacks=called.all(*([checkup] if diagnosing else []), *watchers, signals),
    )
    done = None
    if start is not None:
        trainer.state = TrainerState.load_from_json(str(start.folder / "trainer_state.json"))
        done = "its last step is reached" if start.step >= last and not evaluation_pending(start.folder) else None
        if done is None and not begin.extra:
            done = called.stopping.reason_to_stop(trainer.state.log_history)
        trainer.state.max_steps = last
    if start is not None and done is not None:
        say(f"resume: nothing is left to train, {done}; --extra-epochs N goes on")
        if world.main:
            record.progress(start.step, last, None)
    else:
        try:
            with called, shortages(loaded.device.type, plan, run, halving):
                trainer.train(resume_from_checkpoint=str(start.folder) if start else None)
        except NotFinite as error:
            if not world.main:
                raise
            if diagnosing:
                checkup.look(trainer.state.log_history, silent=True)
            raise NotFinite(f"{error}; {what_is_kept(config, run, trainer.state.best_global_step, say)}") from error
    if signals.stopped:
        # A run that goes on from another's checkpoint may have none of its own yet.
        again = "--resume" if checkpoint_folders(run) else "the same command"
        stopped = Interrupted(f"stopped at step {trainer.state.global_step}; go on with {again}")
        stopped.shared = True
        raise stopped
    if trainer.state.best_global_step is None:
        if start is not None and done is not None:  # its last adapter is in the checkpoint, not in the model
            set_peft_model_state_dict(model, load_peft_weights(str(start.folder), device=loaded.device.type))
            if validation is not None:
                validation.log_odds = trainer._scores(held_out)
        keep(trainer.state.global_step, float("nan"))
        if validation is not None:
            say(f"best: no evaluation gave a {config.metric_for_best_model}, so the last adapter is kept")
    if not world.main:
        return run
    check_best(run, trainer.state.best_global_step)
    publish(run / BEST, run, config.blend, say)
    publish_tokenizer(loaded.tokenizer, run)
    if called.generations is not None:
        set_peft_model_state_dict(model, load_peft_weights(str(run / BEST), device=loaded.device.type))
        best_step = trainer.state.best_global_step or trainer.state.global_step
        called.generations.finish(best_step, trainer.state.global_step)
    write_json(run / HISTORY, trainer.state.log_history)
    state = trainer.state
    best = ""
    if state.best_global_step is not None:
        best = f" (best {config.metric_for_best_model} {state.best_metric:.4f} at step {state.best_global_step})"
    record.end("finished")
    say(f"trained: {run}{best}")
    return run
