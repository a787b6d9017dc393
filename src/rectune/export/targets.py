"""What a tuned model can be exported to, and what each form can say of it."""

from __future__ import annotations

from dataclasses import dataclass

from rectune.baselines.item_rates import uses_rates
from rectune.config import Config
from rectune.errors import ConfigError
from rectune.score.settings import CLASSIFIER as HEAD
from rectune.score.settings import MODEL, OFFSET, AdapterSettings

ADAPTER, MERGED, MERGED_4BIT, GGUF, CLASSIFIER = "adapter", "merged", "merged-4bit", "gguf", "classifier"


@dataclass(frozen=True)
class Target:
    """A form of a tuned model.

    Attributes:
        name: as `--to` takes it.
        what: in a few words.
        merges: whether the adapter goes into the weights.
        added: whether what is added to the model's own log-odds (a prior, a blend) travels along.
        words: whether it answers with the label words, which a run with a classification head has none of.
        calibration: where temperature and offset are.
    """

    name: str
    what: str
    merges: bool
    added: bool
    words: bool
    calibration: str


TARGETS = {
    target.name: target
    for target in (
        Target(ADAPTER, "LoRA adapter for PEFT and rectune", False, True, False, "applied by rectune"),
        Target(MERGED, "whole model in 16 bits", True, False, True, "for the client, in scoring.json"),
        Target(MERGED_4BIT, "whole model in 4 bits (NF4)", True, False, True, "for the client, in scoring.json"),
        Target(GGUF, "whole model for llama.cpp and Ollama", True, False, True, "for the client, in scoring.json"),
        Target(
            CLASSIFIER, "sequence classification, one number a prompt", True, False, False,
            "temperature in the head, offset for the client, in scoring.json",
        ),
    )
}  # fmt: skip


def supports(target: Target) -> dict[str, str]:
    """What a form supports, in words, for its model card."""
    return {
        "layout": "stream and pointwise",
        "item rates in the text": "yes, written by the client",
        "prior": "added by rectune" if target.added else "no",
        "blend with baselines": "added by rectune" if target.added else "no",
        "classification head": "no" if target.words else "yes",
        "temperature and offset": target.calibration,
    }


def check_target(target: Target, config: Config, settings: AdapterSettings) -> None:
    """Refuse what a form cannot say, before anything is loaded: nothing is approximated.

    Args:
        target: the form asked for.
        config: the run's, with its saved prompt keys.
        settings: what was saved beside its adapter.

    Raises:
        ConfigError: the run adds something to the model's log-odds that the form cannot, answers with another head,
            or was started at what 4 bits lose.
    """
    advice = f"use --to {ADAPTER}, which rectune opens with all of it"
    if not target.added and config.prior != "none":
        raise ConfigError(
            f"--to {target.name}: cannot add this run's prior ({config.prior}) to an answer, and without it the "
            f"answers are others; {advice}, or train with prior=none"
        )
    if not target.added and settings.blend:
        names = ", ".join(name for name in settings.blend if name not in (MODEL, OFFSET))
        raise ConfigError(
            f"--to {target.name}: cannot add the baselines that join this run's answer ({names}); {advice}, or take "
            "them out with `rectune calibrate RUN blend=[]`"
        )
    if target.words and settings.head == HEAD:
        raise ConfigError(
            f"--to {target.name}: answers in words, and this run has a classification head; use --to {CLASSIFIER}"
        )
    if target.merges and config.init_lora_weights == "loftq":
        raise ConfigError(
            f"--to {target.name}: a LoftQ adapter holds what 4 bits lose of the base model, so in the 16-bit base that "
            f"would be there twice; use --to {ADAPTER}, or train with another init_lora_weights"
        )


def writes_rates(config: Config) -> bool:
    """Whether a client needs the table of item rates to write the prompts."""
    return uses_rates(config) and config.item_rate_text
