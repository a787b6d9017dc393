"""Tiny runs with random adapters, as training leaves them, and what they say."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rectune.config import parse_config
from rectune.export.calls import EXAMPLE
from rectune.score.candidates import Candidate, CandidateScorer, Request
from rectune.score.open_run import open_run

MakeRun = Callable[..., Path]


def silent(_line: str) -> None:
    """Say nothing."""


def write_run(root: Path, model: Path, dataset: Path, **keys: Any) -> Path:
    """A run folder; `temperature`, `offset` and `spread` (of the adapter's numbers) may be given among the keys."""
    from rectune.model.classifier import for_answers
    from rectune.model.load import load_model
    from rectune.model.lora import attach_adapter, seal_adapter
    from rectune.prompt.dataset import open_dataset
    from rectune.prompt.layouts import prompts_for
    from rectune.prompt.pieces import Pieces
    from rectune.score.settings import settings_of

    fitted = {name: keys.pop(name) for name in ("temperature", "offset") if name in keys}
    spread = keys.pop("spread", 0.1)
    base = {
        "model_name_or_path": str(model), "dataset": str(dataset), "dataset_dir": str(root / "data"), "history_len": 5,
        "output_dir": str(root / "run"), "preprocessing_cache_dir": str(root / "cache"), "bf16": False,
        "report_to": "none", "per_device_eval_batch_size": 8, "cutoff_len": 512, "lora_alpha": 16,
    }  # fmt: skip
    config = parse_config({**base, **keys}, origin="test")
    data = open_dataset(config, silent)
    loaded = load_model(config, silent)
    prompts = prompts_for(config, Pieces(loaded.tokenizer))
    loaded = for_answers(config, loaded, prompts.verbalizer, silent)
    torch.manual_seed(5)
    adapted = attach_adapter(loaded.model, config, loaded.source, None)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                value += torch.randn_like(value) * spread
    folder = config.output_dir
    adapted.save_pretrained(folder)
    seal_adapter(folder)
    loaded.tokenizer.save_pretrained(folder)
    settings = settings_of(
        config, prompts.verbalizer, loaded.source, None, str(loaded.dtype).removeprefix("torch."), data.content_hash,
        data.events,
    )  # fmt: skip
    replace(settings, **fitted).save(folder)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return folder


def own_probability(run: Path) -> float:
    """What rectune itself says of the card's example."""
    history, candidate = EXAMPLE
    (odds,) = CandidateScorer(open_run(run, [], silent), silent).score([Request(history, [Candidate(candidate)])])
    return 1 / (1 + math.exp(-odds[0]))


def card_says(folder: Path, capsys: pytest.CaptureFixture[str], block: int = 0) -> float:
    """Run the code of the model card and return the number that it prints."""
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[block]
    capsys.readouterr()
    exec(code.replace('folder = "."', f"folder = {str(folder)!r}"), {})
    return float(capsys.readouterr().out.strip().splitlines()[-1])
