"""What the Trainer is told: its arguments, the optimiser's needs, the steps of a whole run."""

from __future__ import annotations

import importlib.util
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

from rectune.config import Config
from rectune.config_backends import NATIVE
from rectune.errors import ResourceError
from rectune.train.trackers import PROJECT

Say = Callable[[str], None]


def _kind(config: Config) -> tuple[Any, dict[str, Any]]:
    """The class that holds the arguments of a backend's trainer, and what only it takes."""
    if config.backend == NATIVE:
        from transformers import TrainingArguments

        return TrainingArguments, {}
    from trl import SFTConfig

    return SFTConfig, {
        "max_length": None,  # prompts are made, cut and packed already
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "bf16": False,  # autocast stands inside the loss, as in the native backend
        "gradient_checkpointing": False,  # switched on with the model, where wanted
    }


def trainer_arguments(config: Config, epochs: float, say: Say) -> Any:
    """The Trainer's arguments. Best-adapter keeping, stopping, rotation and logging are done by our callbacks."""
    import torch

    kind, more = _kind(config)
    arguments = kind(
        output_dir=str(config.output_dir),
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        num_train_epochs=epochs,
        max_steps=config.max_steps if config.max_steps > 0 else -1,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps or config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optim,
        fp16=config.fp16,
        eval_strategy=config.eval_strategy,
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.save_steps,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available() and not torch.backends.mps.is_available(),
        remove_unused_columns=False,
        disable_tqdm=True,
        log_level_replica="passive",  # of several processes, the others are as quiet as the main one
        report_to="none",  # the trackers are callbacks of ours
        run_name=f"{config.output_dir.name} {time.strftime('%Y-%m-%d %H:%M:%S')}",
        project=PROJECT,
        **more,
    )
    if arguments.n_gpu > 1:
        # The Trainer would wrap the model in DataParallel, which splits rows but not the places of their answers.
        say(f"device: training on one of {arguments.n_gpu} cards")
        arguments._n_gpu = 1
    return arguments


def check_optimizer(config: Config) -> None:
    """See that the optimiser can be had, before anything is loaded.

    Raises:
        ResourceError: it comes from bitsandbytes, which is not installed.
    """
    if config.optim.startswith("adamw_torch"):
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ResourceError(
            f"optim: {config.optim} needs bitsandbytes, which is not installed: pip install bitsandbytes, "
            "or set optim=adamw_torch"
        )


def say_paging(config: Config, device: str, say: Say) -> None:
    """Say that a paged optimiser does not page here, in place of the library's warning."""
    if device == "cpu" and config.optim.startswith("paged"):
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        say(f"optimiser: {config.optim} on a CPU works without paging")


def planned_steps(config: Config, sequences: int, epochs: float, processes: int = 1) -> int:
    """Optimiser steps of a whole run of so many processes, counted as the Trainer counts them."""
    if config.max_steps > 0:
        return config.max_steps
    batches = math.ceil(sequences / (config.per_device_train_batch_size * processes))
    return math.ceil(epochs * math.ceil(batches / config.gradient_accumulation_steps))
