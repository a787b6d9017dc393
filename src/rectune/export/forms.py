"""How each form of a tuned model is made and asked: one function a target, each returning what its clients answer."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rectune.errors import ModelError
from rectune.export.classifier import as_classifier
from rectune.export.clients import ask_adapter, ask_classifier, ask_merged
from rectune.export.merge import half_type, merge_adapter
from rectune.export.pairs import Pairs
from rectune.export.parity import FLOOR, Floats, Parity, Tolerance
from rectune.export.prompt_template import start_text
from rectune.export.tokenizer import save_classifier_tokenizer, save_tokenizer
from rectune.export.weights import Change, changes_of, check_saved
from rectune.model.classifier import for_answers
from rectune.model.load import load_model
from rectune.model.lora import ADAPTER_FILE, SEAL, load_adapter
from rectune.score.open_run import OpenRun
from rectune.score.scorer import score_trees
from rectune.score.settings import BASELINE_FILES, FILE_NAME, RATES

Say = Callable[[str], None]

HALF = Tolerance(share=0.15, floor=FLOOR, rank=0.95)
"""Of forms in 16 bits, whose weights are proved to the bit; this is for what weights do not show: configuration,
tokenizer, head and template, where a mistake moves answers by all that they say. It lies between that and rounding,
which moves those of a small model most: in shares of what its adapter does, SmolLM2-135M was 5 % off asked through PEFT
with the same weights, 6 and 7 % merged in bfloat16 (rank correlation 0.984 where its answers lay close together, else
0.994)."""


Handed = list[OpenRun]
"""The one reference to a run with its weights, for whoever takes it out. Two whole models at once, the trained and the
exported one, are more than a card has room for."""


@dataclass(frozen=True)
class Trained:
    """Answers of a run to the pairs, before calibration.

    Attributes:
        tuned, untuned: float64 [n]; log-odds with the adapter and without.
    """

    tuned: Floats
    untuned: Floats


def ask_trained(run: OpenRun, model: Any, pairs: Pairs) -> Trained:
    """The answers of a run's model as rectune evaluates it, or of another with the same adapter."""
    words, size, kernel = run.prompts.verbalizer, run.config.per_device_eval_batch_size, run.loaded.attention
    tuned = score_trees(model, pairs.trees, words, size, kernel)
    with model.disable_adapter():
        return Trained(tuned, score_trees(model, pairs.trees, words, size, kernel))


def released(run: OpenRun) -> OpenRun:
    """A run without its weights; the caller lets go of the other."""
    return replace(run, model=None, loaded=replace(run.loaded, model=None))


def free() -> None:
    """Give back the memory of models that nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def merged_model(run: OpenRun, pairs: Pairs, trained: Trained, say: Say) -> tuple[Any, Trained, dict[str, Change]]:
    """A run's model with the adapter in 16-bit weights, the answers that these must give, and what the adapter added.

    An adapter that was trained on quantised weights goes into the 16-bit base all the same. Its answers there are
    others than those of training; by how much is said, and what is exported must agree with them.
    """
    model, must = run.model, trained
    if run.settings.quantization is not None:
        config = run.config.with_overrides(use_qlora=False, quantization_bit=None)
        say(f"merge: into the base model in 16 bits, never into the {run.settings.quantization} weights of training")
        loaded = for_answers(config, load_model(config, say), run.prompts.verbalizer, say)
        model = load_adapter(loaded.model, run.folder)
        must = ask_trained(replace(run, loaded=loaded), model, pairs)
        shift = Parity.of(must.tuned, trained.tuned, trained.untuned)
        say(f"shift from the {run.settings.quantization} model that was trained to the 16-bit one: {shift.line()}")
    changes = changes_of(model)
    return merge_adapter(model, half_type(run.settings.dtype, model.config)), must, changes


def checked(what: str, found: Parity, tolerance: Tolerance, say: Say) -> Parity:
    """The comparison, said.

    Raises:
        ModelError: it is beyond the tolerance.
    """
    say(f"check: {what}, {found.pairs} pairs: {found.line()}")
    found.check(tolerance, what)
    return found


def affordable(what: str, found: Parity, accept: bool, say: Say) -> Parity:
    """The comparison of a quantised form, said.

    Raises:
        ModelError: quantisation costs too much (see `Parity.check_loss`).
    """
    say(f"check: {what}, {found.pairs} pairs: {found.line()}")
    found.check_loss(what, accept)
    if found.costly:
        say(f"LOSS ACCEPTED: {what} orders the pairs otherwise than the trained model does; the model card says so")
    return found


def compared(asked: Floats, must: Trained, pairs: Pairs) -> Parity:
    """Answers compared, but for those whose titles hold a marker that a client's tokenizer takes for the real one.

    Raises:
        ModelError: there are no others.
    """
    plain = ~pairs.marked
    if not plain.any():
        raise ModelError("every pair holds a title with a special token in it, so no export can be checked on them")
    return Parity.of(asked[plain], must.tuned[plain], must.untuned[plain], pairs.trees.labels[plain])


@dataclass(frozen=True)
class Merged:
    """A merged model that was saved.

    Attributes:
        must: what it must answer.
        changes: what the adapter added to its weights, by name.
    """

    must: Trained
    changes: dict[str, Change]


def save_merged(run: OpenRun, folder: Path, pairs: Pairs, trained: Trained, say: Say) -> Merged:
    """Save the merged model with its tokenizer."""
    model, must, changes = merged_model(run, pairs, trained, say)
    model.save_pretrained(folder)
    check_saved(model, changes, folder)
    save_tokenizer(run.loaded.tokenizer, folder)
    return Merged(must, changes)


def export_merged(handed: Handed, folder: Path, pairs: Pairs, trained: Trained, say: Say) -> dict[str, Parity]:
    """A whole model in 16 bits."""
    run = handed.pop()
    must = save_merged(run, folder, pairs, trained, say).must
    run = released(run)
    free()
    asked = ask_merged(folder, pairs.texts, run.prompts.verbalizer, run.loaded.device)
    return {"transformers": checked("merged, asked through transformers", compared(asked, must, pairs), HALF, say)}


def export_classifier(handed: Handed, folder: Path, pairs: Pairs, trained: Trained, say: Say) -> dict[str, Parity]:
    """Sequence classification with one label."""
    run = handed.pop()
    model, must, changes = merged_model(run, pairs, trained, say)
    pad_id = save_classifier_tokenizer(run.loaded.tokenizer, start_text(run.prompts.pieces), pairs.texts, folder)
    words, temperature = run.prompts.verbalizer, run.settings.temperature
    model = as_classifier(model, words, words.positive, temperature, pad_id)
    model.save_pretrained(folder)
    check_saved(model, changes, folder)
    del model
    run = released(run)
    free()
    asked = ask_classifier(folder, pairs.texts, run.loaded.device) * temperature
    what = "classifier, asked through transformers"
    return {"transformers": checked(what, compared(asked, must, pairs), HALF, say)}


def adapter_files(folder: Path) -> list[Path]:
    """What of a run folder rectune and PEFT open; logs, checkpoints and metrics stay behind."""
    names = [ADAPTER_FILE, "adapter_config.json", SEAL, FILE_NAME, "config.yaml", RATES, *BASELINE_FILES.values()]
    return [folder / name for name in names if (folder / name).is_file()]


def export_adapter(handed: Handed, folder: Path, pairs: Pairs, trained: Trained, say: Say) -> dict[str, Parity]:
    """The adapter with all that was saved beside it, for PEFT and for rectune itself."""
    run = handed.pop()
    for file in adapter_files(run.folder):
        shutil.copy2(file, folder / file.name)
    if not (folder / "config.yaml").is_file():  # a checkpoint's lies a folder above
        (folder / "config.yaml").write_text(run.config.to_yaml(), encoding="utf-8")
    run.loaded.tokenizer.save_pretrained(folder)
    base = run.model.unload()
    asked = ask_adapter(base, folder, pairs.texts, run.prompts.verbalizer)
    found = compared(asked, trained, pairs)
    return {"peft": checked("adapter, asked through PEFT", found, HALF, say)}
