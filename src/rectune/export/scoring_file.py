"""`scoring.json` beside an export: what a client needs to ask the model as it was trained and to read its answer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rectune.export.calls import EXAMPLE
from rectune.export.parity import Parity
from rectune.export.prompt_template import PromptTemplate
from rectune.export.targets import CLASSIFIER, Target
from rectune.files import write_json
from rectune.score.open_run import OpenRun
from rectune.version import __version__

FILE_NAME = "scoring.json"


def base_name(run: OpenRun) -> str:
    """What the base model is called to others: a hub's or a wheel's name, of a folder its last part."""
    name = run.settings.base_model
    return Path(name).name if name.startswith(("/", "~", ".")) else name


def calibration_of(run: OpenRun, target: Target) -> dict[str, Any]:
    """What a client does with a log-odds that it reads, so that it becomes the run's probability."""
    settings = run.settings
    folded = target.name == CLASSIFIER
    temperature = 1.0 if folded else settings.temperature
    return {
        "temperature": temperature,
        "offset": settings.offset,
        "threshold": settings.threshold,
        "formula": "P = 1 / (1 + exp(-(log_odds / temperature + offset)))",
        "log_odds": "the classifier's number before any sigmoid"
        if folded
        else "the positive word's logit less the negative word's, at the prompt's last token",
    }


def scoring_of(run: OpenRun, template: PromptTemplate, target: Target, parity: dict[str, Parity]) -> dict[str, Any]:
    """What `scoring.json` holds."""
    words, config = run.prompts.verbalizer, run.config
    found: dict[str, Any] = {
        "rectune": __version__,
        "target": target.name,
        "base_model": base_name(run),
        "base_revision": run.settings.base_revision,
        "adapter_sha256": run.adapter_hash,
        "data_hash": run.settings.data_hash,
        "layout": config.layout,
        "prompt_format": config.prompt_format,
        "history_shows": config.history_shows,
        "item_text": config.item_text,
        "history_len": config.history_len if config.layout == "pointwise" else None,
        "cutoff_len": config.cutoff_len,
        "prompt": {
            "language": "Jinja, trailing line ends kept",
            "query": template.query,
            "document": template.document,
            "history": "a list of {item, rating, label (0 or 1)}, oldest first",
            "candidate": "the item's text",
        },
        "labels": {
            "positive": {"word": words.positive, "id": words.positive_id},
            "negative": {"word": words.negative, "id": words.negative_id},
        },
        "calibration": calibration_of(run, target),
    }
    if target.name == CLASSIFIER:
        found["vllm"] = {"pooler_config": {"logit_mean": -run.settings.offset}}
    history, candidate = EXAMPLE
    found["example"] = {
        "history": [{"item": event.title, "rating": event.rating, "label": event.label} for event in history],
        "candidate": candidate,
        "prompt": template.text(history, candidate),
    }
    found["check"] = {name: asdict(each) for name, each in parity.items()}
    return found


def write_scoring(
    folder: Path, run: OpenRun, template: PromptTemplate, target: Target, parity: dict[str, Parity]
) -> dict[str, Any]:
    """Write `scoring.json` into an export and return what it holds."""
    found = scoring_of(run, template, target, parity)
    write_json(folder / FILE_NAME, found)
    return found
