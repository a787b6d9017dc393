"""Which keys may change when a run goes on from a checkpoint, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rectune.config import Config, load_config
from rectune.errors import ConfigError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Group:
    """Keys that are treated alike on a resume.

    Attributes:
        rule: `free` (changed and said), `course` (changed and said: from here on it is another run than the
            uninterrupted one), `refused`.
        why: the reason, as it is told.
        keys: their names.
    """

    rule: Literal["free", "course", "refused"]
    why: str
    keys: tuple[str, ...]


GROUPS = (
    Group(
        "free",
        "it does not touch what is trained",
        (
            "output_dir", "dataset_dir", "preprocessing_cache_dir", "scoring_memory_gib", "per_device_eval_batch_size",
            "max_test_samples", "save_steps", "save_total_limit", "logging_steps", "gen_eval_samples", "baselines",
            "report_to", "blend", "sweep", "max_rejects", "panel_samples", "part_rows", "json_files",
        ),
    ),
    Group("free", "its content is held against the checkpoint's data hash", (
        "dataset", "source_format", "user_column", "item_column", "time_column", "rating_column", "label_column",
        "split_column", "title_column", "category_column", "attribute_columns", "items", "items_id_column",
        "text_column",
    )),
    Group(
        "course",
        "from here on the run takes another course than it would have",
        (
            "learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_ratio", "warmup_steps",
            "weight_decay", "max_grad_norm", "lora_dropout", "loss_over", "label_smoothing", "focal_gamma",
            "eval_strategy", "eval_steps", "early_stopping_patience", "loss_plateau_patience", "loss_plateau_min_delta",
        ),
    ),
    Group("course", "from here on the numbers are rounded otherwise", (
        "flash_attn", "bf16", "fp16", "gradient_checkpointing", "auto_batch", "backend",
    )),
    Group("refused", "the adapter was trained on top of it", (
        "model_name_or_path", "model_revision", "adapter_name_or_path", "use_qlora", "quantization_bit",
    )),
    Group("refused", "it is the shape or the scale of the adapter", (
        "lora_rank", "lora_alpha", "lora_target", "lora_layers", "lora_bias", "use_rslora", "use_dora",
        "init_lora_weights",
    )),
    Group(
        "refused",
        "what it adds to the log-odds is taken off the scores, and half of it cannot be",
        ("class_weights", "oversample"),
    ),
    Group("refused", "the saved optimiser state is another's", ("optim", "loraplus_lr_ratio")),
    Group("refused", "it decides what is trained on and measured", (
        "history_len", "label_from", "rating_threshold", "split", "test_ratio", "validation_ratio", "max_users",
        "max_train_samples", "max_eval_samples", "train_since", "min_history", "max_per_user", "negatives",
        "negative_sampling",
    )),
    Group("refused", "the model would be asked otherwise than it has been trained so far", (
        "layout", "prompt_format", "prompt_domain", "system_prompt", "instruction", "history_header",
        "candidate_header", "question", "stream_header", "stream_cue", "window_overlap", "shuffle_moments",
        "history_drop", "history_shuffle", "task", "labels", "rubric",
        "history_shows", "item_text", "item_rate_text", "prior", "item_rate_from", "item_rate_strength",
        "positive_label", "negative_label", "cutoff_len",
    )),
    Group("refused", "it decides the order of the data, in which the checkpoint is a place", ("seed", "packing")),
    Group("refused", "adapters that were the best by another metric were not kept", ("metric_for_best_model",)),
    Group(
        "refused",
        "sequences of a step count the checkpoint's place in the data, so their product must stay",
        ("per_device_train_batch_size", "gradient_accumulation_steps"),
    ),
)  # fmt: skip
"""Every key of the configuration, in exactly one group. A key that is not here fails a test: put it

- under `free` where the trained weights stay the same whatever it is (what is watched, where files lie),
- under `course` where going on with another value makes sense (rates, lengths, stopping),
- under `refused` where the checkpoint's adapter, optimiser or place in the data would no longer fit.
"""

PROCESSES = "processes"
"""How many processes a run has: no key, since a launcher decides it, but told beside the keys that changed."""
_BATCH = (*GROUPS[-1].keys, PROCESSES)


def _group(key: str) -> Group:
    return GROUPS[-1] if key == PROCESSES else next(group for group in GROUPS if key in group.keys)


def _step_size(config: Config, processes: int) -> int:
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * processes


def saved_config(checkpoint: Path) -> Config | None:
    """The configuration that a checkpoint was saved under; those of an earlier version look into their run folder.

    Raises:
        ConfigError: this version does not know it.
    """
    for place in (checkpoint, checkpoint.parent):
        if (place / "config.yaml").is_file():
            return load_config(place)
    return None


def check_changes(
    before: Config, config: Config, checkpoint: Path, say: Say, processes: tuple[int, int] = (1, 1)
) -> None:
    """Name every key that is changed, and refuse those with which the checkpoint is no good.

    Args:
        before: the checkpoint's configuration.
        config: what the run is to go on with.
        checkpoint: named in the message.
        say: prints one line.
        processes: how many trained until the checkpoint, and how many are to go on.

    Raises:
        ConfigError: a key that may not change has changed; nothing has been touched.
    """
    then, now = before.model_dump(mode="json"), config.model_dump(mode="json")
    then[PROCESSES], now[PROCESSES] = processes
    changed = [key for key in now if then[key] != now[key]]
    refused = [key for key in changed if _group(key).rule == "refused"]
    if _step_size(before, processes[0]) == _step_size(config, processes[1]):
        refused = [key for key in refused if key not in _BATCH]
    if refused:
        told = "; ".join(f"{key} was {then[key]!r} and is now {now[key]!r}, but {_group(key).why}" for key in refused)
        times, rest = divmod(_step_size(before, processes[0]), config.per_device_train_batch_size * processes[1])
        if PROCESSES in refused and not rest:
            told += f" (as it does with gradient_accumulation_steps={times})"
        raise ConfigError(
            f"{checkpoint}: cannot go on from here: {told}. Put it back, or begin a new run from this adapter with "
            f"adapter_name_or_path={checkpoint} output_dir=OTHER"
        )
    for key in changed:
        why = "the sequences of a step stay the same" if key in _BATCH else _group(key).why
        say(f"resume: {key} was {then[key]!r} and is now {now[key]!r}: {why}")
