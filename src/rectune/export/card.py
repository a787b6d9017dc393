"""The model card of an export: data, protocol, metrics with intervals, baselines, prompt, licence, how to call it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from rectune.data.folder import META, load_meta
from rectune.data.leak import SPLIT_BY
from rectune.errors import DataError
from rectune.export.calls import call_of
from rectune.export.parity import LEAST_RANK, Parity
from rectune.export.scoring_file import base_name
from rectune.export.targets import CLASSIFIER, GGUF, Target, supports
from rectune.files import write_text
from rectune.report.report import both_protocols
from rectune.report.verdict import FROZEN_UAUC, METRIC_NAMES, Estimate
from rectune.score.open_run import OpenRun

_METRICS = ("auc", FROZEN_UAUC, "accuracy", "f1", "loss", "ece")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(found: Estimate | None) -> str:
    if found is None or found.value is None:
        return ""
    interval = f" [{found.low:.3f}, {found.high:.3f}]" if found.low is not None and found.high is not None else ""
    return f"{found.value:.3f}{interval}"


def measured(run: OpenRun) -> str:
    """What the run's report measured, or that none was made.

    Raises:
        DataError: `metrics.json` is damaged.
    """
    file = run.folder / "metrics.json"
    if not file.is_file():
        return f"This run was exported before it was evaluated (`rectune evaluate {run.folder.name}` measures it)."
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            [name, *(_cell(found.get(metric)) for metric in _METRICS)] for name, found in both_protocols(report).items()
        ]
        users, events, verdict = report["users"], report["rows"], report["verdict"]
        made = report.get("how_made", {})
        told = {"adapter hash": run.adapter_hash, "calibration": run.settings.correction_text}
        stale = [what for what, now in told.items() if made.get(what, now) != now]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: damaged ({error}); make it again with `rectune evaluate {run.folder}`") from error
    if stale:  # trained on, or calibrated anew, after it was measured
        return (
            f"This run was exported before it was evaluated as it is now: its report is of another {stale[0]} "
            f"(`rectune evaluate {run.folder.name}` measures it)."
        )
    shown = _table(["model", *(METRIC_NAMES[metric] for metric in _METRICS)], rows)
    return (
        f"{events:,} held-out events of {users:,} users, each asked about given all that came before it (frozen: given "
        "what was known before the first of them); 95 % intervals by bootstrap over users. Measured on the run, not on "
        f"this export, whose agreement with it is below.\n\n{shown}\n\n{verdict}"
    )


def _data(run: OpenRun) -> str:
    config = run.config
    text = f"{config.dataset_name()}, split {SPLIT_BY[config.split]}; content hash `{run.settings.data_hash}`."
    if (config.dataset_folder() / META).is_file():
        note = load_meta(config.dataset_folder()).get("leak", {}).get("note", "")
        text += f" {note}" if note else ""
    return text


def license_of(source: str) -> str | None:
    """The licence that a base model's own card names, where it lies beside the weights."""
    file = Path(source) / "README.md"
    if not file.is_file():
        return None
    match = re.match(r"---\n(.*?)\n---", file.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        told = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return None
    return str(told["license"]) if isinstance(told, dict) and told.get("license") else None


def _front(run: OpenRun, target: Target, licence: str | None) -> str:
    base = base_name(run)
    values: dict[str, Any] = {"tags": ["rectune", "recommender"], "pipeline_tag": "text-ranking"}
    values["library_name"] = {"adapter": "peft", GGUF: "gguf"}.get(target.name, "transformers")
    if base == run.settings.base_model and not base.startswith("wheel:"):
        values["base_model"] = base
    if licence is not None:
        values["license"] = licence
    if target.name == CLASSIFIER:
        values["tags"].append("cross-encoder")
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n"


def _prompt(run: OpenRun, scoring: dict[str, Any]) -> str:
    markers = ", ".join(f"`{marker}`" for marker in list(run.prompts.pieces.special_ids)[:3])
    return (
        f"`scoring.json` holds the prompt as two Jinja templates: `query`, which all candidates of a user share, and "
        f"`document`, a candidate. Written out for two events:\n\n```\n{scoring['example']['prompt']}\n```\n\n"
        f"{_content(run)}"
        f"- Titles are plain text of one line. **Take special tokens out of them** ({markers} ...): rectune reads them "
        "in a title as plain letters, a tokenizer that is given the whole string takes them for the real ones.\n"
        "- Let the tokenizer add what it adds by itself, and nothing else: it begins texts as it did in training.\n"
        f"- The answer is `{run.prompts.verbalizer.positive}` or `{run.prompts.verbalizer.negative}`"
        + (
            "; this form gives their log-odds as one number.\n"
            if target_is_classifier(scoring)
            else ", one token each.\n"
        )
        + f"- A probability is `{scoring['calibration']['formula'].removeprefix('P = ')}` with temperature "
        f"{scoring['calibration']['temperature']:.6g} and offset {scoring['calibration']['offset']:.6g}; at "
        f"{scoring['calibration']['threshold']:.6g} or more the answer counts as a like."
    )


def _content(run: OpenRun) -> str:
    """What stands in a prompt, as items of a list."""
    config = run.config
    if config.task == "classify":
        return (
            f"- The text is the candidate, and there is no history; a prompt has at most {config.cutoff_len} tokens, "
            "and of a longer text rectune leaves out the middle.\n"
        )
    shown = f"at most the last {config.history_len} events" if config.layout == "pointwise" else "as many events as fit"
    return (
        f"- A history shows {shown}; drop the oldest whole events until a prompt has at most {config.cutoff_len} "
        "tokens.\n"
        f"- An item is called `{config.item_text}`, as rectune's key `item_text` explains: what training called it.\n"
    )


def _costs(scoring: dict[str, Any]) -> list[str]:
    """What quantisation has cost more than it should, for the top of the card."""
    found = [(name, Parity(**each)) for name, each in scoring["check"].items()]
    return [
        f"> **Quantisation has cost this model much ({name}).** Its answers to {each.pairs} questions correlate "
        f"{each.rank:.3f} in order with those of the trained model, where {LEAST_RANK:g} is wanted, and are off by "
        f"{each.root:.2g} in log-odds, where the adapter does {each.effect:.2g}"
        + ("" if each.auc is None else f"; AUC on these questions {each.auc:.3f} became {each.auc_exported:.3f}")
        + ". Whoever exported it was told and went on (`--accept-loss`). What is measured below is not of this form.\n"
        for name, each in found
        if each.costly
    ]


def _what(run: OpenRun) -> tuple[str, str]:
    """What the model answers: as a heading, and in a sentence."""
    if run.config.task == "recommend":
        return "Will this user like this item?", "given what a user did, the probability that they like an item"
    negative, positive = run.config.classes
    word = run.prompts.verbalizer.positive
    return f"{positive} or {negative}?", f"the probability that a text is `{positive}` (answered `{word}`)"


def target_is_classifier(scoring: dict[str, Any]) -> bool:
    """Whether a `scoring.json` is that of a classifier."""
    return bool(scoring["target"] == CLASSIFIER)


def write_card(folder: Path, run: OpenRun, target: Target, scoring: dict[str, Any]) -> None:
    """Write the model card of an export.

    Args:
        folder: where the export lies.
        run: what it was made from; its weights are not looked at.
        target: the form.
        scoring: what `scoring.json` holds.

    Raises:
        DataError: the run's metrics or the dataset's description are damaged.
    """
    config, settings = run.config, run.settings
    licence = license_of(run.loaded.source)
    quantised = f" on {settings.quantization} weights" if settings.quantization else ""
    checks = "\n".join(f"- {name}: {Parity(**each).line()}" for name, each in scoring["check"].items())
    parts = [
        _front(run, target, licence),
        f"# {_what(run)[0]} ({config.dataset_name()})\n",
        f"Made of `{base_name(run)}` with rectune by LoRA (rank {config.lora_rank}){quantised}: {_what(run)[1]}. This "
        f"is its form `{target.name}`: {target.what}.\n",
        *_costs(scoring),
        f"## Data\n{_data(run)}\n",
        f"## Measured\n{measured(run)}\n",
        f"## The prompt\n{_prompt(run, scoring)}\n",
        f"## How to call it\n{call_of(target, run, scoring)}\n",
        "## Checked\nBefore this export got its name, it was asked "
        f"{next(iter(scoring['check'].values()))['pairs']} questions as a foreign client asks them, whole strings, and "
        f"its answers were compared with the trained model's:\n\n{checks}\n",
        "## What this form can say\n"
        + _table(["", ""], [[key, value] for key, value in supports(target).items()])
        + "\n",
        "## Licence\n"
        + (
            f"That of the base model: {licence}."
            if licence is not None
            else "That of the base model; none was found beside its weights, so look where they come from."
        )
        + " The data has terms of its own.\n",
        f"Made with rectune {scoring['rectune']}; adapter SHA-256 `{scoring['adapter_sha256']}`.",
    ]
    write_text(folder / "README.md", "\n".join(parts) + "\n")
