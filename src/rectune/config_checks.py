"""What is wrong with a configuration that needs more than one key to be seen."""

from __future__ import annotations

import re
from pathlib import Path

from rectune.config_backends import backend_problems
from rectune.config_classify import classify_problems
from rectune.config_keys import Config, default_of


def _initialisation(config: Config) -> list[str]:
    """Where an adapter cannot start."""
    kind, bits = config.init_lora_weights, 4 if config.use_qlora else config.quantization_bit
    problems = []
    if kind == "loftq" and bits != 4:
        problems.append("init_lora_weights: got 'loftq', which makes up for 4-bit quantisation; set use_qlora=true")
    if kind == "loftq" and config.use_dora:
        problems.append("init_lora_weights: got 'loftq' beside use_dora: true; choose one of the two")
    if kind in ("pissa", "olora") and bits is not None:
        problems.append(
            f"init_lora_weights: got {kind!r} beside a base in {bits} bits; what it leaves of the base would be "
            "quantised in its place, and the adapter would fit no other base; use loftq or default"
        )
    if kind in ("pissa", "olora") and config.weight_decay:
        problems.append(
            f"weight_decay: got {config.weight_decay!r} beside init_lora_weights: {kind}, where it would pull the base "
            "weights' main directions to zero, not the change; use 0"
        )
    return problems


def cross_checks(config: Config) -> list[str]:
    """Problems that need more than one key to be seen."""
    problems = []
    if config.bf16 is True and config.fp16:
        problems.append("fp16: got true beside bf16: true; choose one of the two")
    if config.use_qlora and config.quantization_bit == 8:
        problems.append("quantization_bit: got 8 beside use_qlora: true (4 bits); choose one of the two")
    if config.prior != "none" and config.gen_eval_samples:
        problems.append("gen_eval_samples: a generated answer cannot have a prior added; use 0, or prior=none")
    if len(set(config.blend)) < len(config.blend):
        problems.append(f"blend: got {config.blend!r}, which names one twice; name each once")
    if "stack" in config.blend and config.prior == "stack":
        problems.append("blend: got 'stack' beside prior: stack, which has its log-odds in it already; leave one out")
    if config.prompt_format == "classifier" and config.gen_eval_samples:
        problems.append("gen_eval_samples: a classification head writes no words; use 0, or another prompt_format")
    if isinstance(config.report_to, list) and len(config.report_to) > 1:
        if "none" in config.report_to:
            problems.append(f"report_to: got {config.report_to!r}; none stands alone")
        if len(set(config.report_to)) < len(config.report_to):
            problems.append(f"report_to: got {config.report_to!r}, which names one twice; name each once")
    if config.layout == "stream":
        if config.history_shuffle:
            problems.append(
                f"history_shuffle: got {config.history_shuffle} beside layout: stream, where an event is asked about "
                "in its place and would see later ones; use history_drop, shuffle_moments, or layout=pointwise"
            )
        if config.prompt_format == "instruction":
            problems.append(
                f"prompt_format: got {config.prompt_format!r} beside layout: stream, allowed: chat, completion, "
                "classifier; or set layout=pointwise"
            )
        if not config.stream_cue.strip() or config.stream_cue != config.stream_cue.rstrip():
            problems.append(f"stream_cue: got {config.stream_cue!r}; use a word or sign without space behind it")
    if config.positive_label.strip() == config.negative_label.strip():
        problems.append(f"negative_label: got {config.negative_label!r}, the same as positive_label; use two words")
    for key in ("positive_label", "negative_label"):
        if not getattr(config, key).strip():
            problems.append(f"{key}: got an empty word; use a short word such as Yes or No")
    if config.split not in ("leave_one_out", "column") and config.test_ratio + config.validation_ratio >= 1:
        problems.append("test_ratio: with validation_ratio it leaves nothing to train on; keep their sum below 1")
    alone = config.split == "leave_one_out" and config.label_from != "purchases"  # whose negatives are beside them
    if alone and config.metric_for_best_model == "uauc":
        problems.append(
            "metric_for_best_model: got 'uauc' beside split: leave_one_out, where every user has one validation event "
            "and so none to rank; use loss or auc"
        )
    if config.max_per_user is not None and config.max_per_user <= config.warmup and config.split != "column":
        key = "history_len" if config.min_history is None else "min_history"
        problems.append(
            f"max_per_user: got {config.max_per_user} beside {key}: {config.warmup} events that are not asked about, "
            f"which leaves none; use more, or a smaller {key}"
        )
    if not config.dataset_name().strip():
        problems.append(f"dataset: got {config.dataset!r}, which names none; use ml-100k or a folder or zip")
    for key in ("negatives", "negative_sampling"):
        if config.label_from != "purchases" and getattr(config, key) != default_of(key):
            problems.append(
                f"{key}: does nothing beside label_from: {config.label_from}, whose labels are there already; set "
                "label_from=purchases"
            )
    problems += _of_tables(config)
    if config.output_dir == Path():
        problems.append("output_dir: got an empty path or the current folder; name a folder for the run")
    if config.max_steps == 0:
        problems.append("max_steps: got 0, allowed: -1 (num_train_epochs decides) or at least 1")
    problems += _initialisation(config)
    weights = config.class_weights
    if isinstance(weights, list) and (len(weights) != 2 or min(weights) <= 0):
        problems.append(f"class_weights: got {weights!r}, allowed: none, balanced, or two numbers above 0, [1, 3] say")
    if config.focal_gamma and config.label_smoothing:
        problems.append(
            f"label_smoothing: got {config.label_smoothing!r} beside focal_gamma: {config.focal_gamma!r}; both soften "
            "sure answers, and focal loss is made for plain targets; set one of them to 0"
        )
    for key in ("lora_target", "lora_layers"):
        if getattr(config, key) in ([], ""):
            problems.append(f"{key}: got {getattr(config, key)!r}, which adapts nothing; use all or name some")
    if isinstance(config.lora_target, str) and config.lora_target not in ("", "all", "attention", "qv"):
        problems.append(
            f"lora_target: got {config.lora_target!r}, allowed: all, attention, qv or a list such as [q_proj, v_proj]"
        )
    return problems + classify_problems(config) + backend_problems(config)


def _of_tables(config: Config) -> list[str]:
    """Problems with the keys that say how a table is read."""
    problems = []
    for key, beside, wanted in (("label_column", "label_from", "column"), ("split_column", "split", "column")):
        if getattr(config, key) is not None and getattr(config, beside) != wanted:
            problems.append(f"{key}: does nothing beside {beside}: {getattr(config, beside)}; set {beside}={wanted}")
    if config.items_id_column is not None and config.items is None:
        problems.append("items_id_column: does nothing without items; name the file of the items, or leave it out")
    found = re.fullmatch(r"\s*\d{1,15}(\.\d{1,15})?\s*%\s*|\s*\d{1,15}\s*", str(config.max_rejects), re.ASCII)
    share = "%" in str(config.max_rejects) and found is not None
    if found is None or (share and float(str(config.max_rejects).strip().rstrip("%")) > 100):
        problems.append(
            f"max_rejects: got {config.max_rejects!r}, allowed: a share of the rows such as 1%, or a number of them"
        )
    return problems
