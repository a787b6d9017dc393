"""Who computes the steps: our own Trainer, TRL's SFTTrainer, or that on a model loaded by Unsloth."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from rectune.config import Config
from rectune.config_backends import NATIVE, UNSLOTH
from rectune.errors import ResourceError
from rectune.model.load import Loaded, load_model

Say = Callable[[str], None]


def prepare_backend(config: Config, say: Say) -> None:
    """Check that a configuration's backend can be had, and import it; nothing is imported for `native`.

    Call it first: Unsloth replaces parts of transformers, peft and trl when it is imported.

    Raises:
        ResourceError: its package is not installed, or Unsloth has no CUDA card.
    """
    if config.backend == NATIVE:
        return
    for package in ("trl",) if config.backend != UNSLOTH else ("unsloth", "trl"):
        if importlib.util.find_spec(package) is None:
            raise ResourceError(
                f"backend: {config.backend} needs the package {package}, which is not installed: "
                f"pip install {package}, or set backend=native"
            )
    if config.backend == UNSLOTH:
        import torch

        if not torch.cuda.is_available():
            raise ResourceError("backend: unsloth needs a CUDA card, and there is none here; set backend=native or trl")
        importlib.import_module("unsloth")
    say(f"backend: {config.backend}; SFTTrainer computes the steps, the rest of the run is as with native")


def load_for_training(config: Config, say: Say, hold: bool = False) -> Loaded:
    """The base model, loaded by the backend that trains it; with `hold` left in main memory.

    Raises:
        ModelError, ResourceError: see `load_model`.
    """
    if config.backend == UNSLOTH:
        from rectune.train.unsloth import load_unsloth

        return load_unsloth(config, say)
    return load_model(config, say, hold)


def trainer_of(config: Config) -> Any:
    """The class that trains, a kind of `AnswerTrainer`."""
    if config.backend == NATIVE:
        from rectune.train.trainer import AnswerTrainer

        return AnswerTrainer
    from rectune.train.trl import SupervisedTrainer

    return SupervisedTrainer
