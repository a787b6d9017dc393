"""A run as training leaves it, and services in this process or in one of their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

from rectune.config import Config
from rectune.serve.service import Service

KEY = "a-key-of-the-tests-0123456789"


def silent(_line: str) -> None:
    """Say nothing."""


def write_run(config: Config, folder: Path, base: str, seed: int) -> None:
    """A run with a random adapter; baselines that join its answer have weights that nobody fitted."""
    import torch

    from rectune.baselines.blended import fit_served
    from rectune.model.load import load_model
    from rectune.model.lora import attach_adapter, seal_adapter
    from rectune.prompt.dataset import open_dataset
    from rectune.prompt.layouts import prompts_for
    from rectune.prompt.pieces import Pieces
    from rectune.score.settings import settings_of

    data = open_dataset(config, silent)
    loaded = load_model(config, silent)
    torch.manual_seed(seed)
    model = attach_adapter(loaded.model, config, base, None)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.05)
    model.save_pretrained(folder)
    seal_adapter(folder)
    words = prompts_for(config, Pieces(loaded.tokenizer)).verbalizer
    names = [*(["stack"] if config.prior == "stack" else []), *config.blend]
    baselines = fit_served(names, data.events, data.catalog, data.content_hash, config.preprocessing_cache_dir, silent)
    settings = settings_of(
        config, words, loaded.source, None, "float32", data.content_hash, data.events, baselines
    )  # fmt: skip
    if config.blend:
        weights = {name: 0.5 / (at + 2) for at, name in enumerate(config.blend)}
        settings = replace(settings, blend={"model": 0.7, **weights, "offset": -0.25})
    settings.save(folder)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")


@dataclass
class Here:
    """A service in a thread of this process."""

    url: str
    service: Service
    server: Any
    journal: StringIO
    thread: threading.Thread
    loop: asyncio.AbstractEventLoop

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.journal.getvalue().splitlines()]

    def last(self, event: str, **told: Any) -> dict[str, Any]:
        """The last line about something, which may be written a moment after the answer."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for line in self.lines()[::-1]:
                if line["event"] == event and told.items() <= line.items():
                    return line
            time.sleep(0.01)
        raise AssertionError(self.journal.getvalue())


@dataclass
class Process:
    """`rectune serve` in a process of its own."""

    number: int
    folder: Path
    forker: subprocess.Popen[str]
    url: str = ""
    ended: list[int] = field(default_factory=list)

    def text(self, name: str) -> str:
        file = self.folder / name
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Lines of the journal about one kind of event."""
        found = [
            json.loads(line) for line in self.text("err").splitlines() if line.startswith("{") and line.endswith("}")
        ]
        return [line for line in found if line["event"] == event]

    def wait_for(self, there: Callable[[], Any]) -> Any:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = there()
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError(self.text("out") + self.text("err"))

    def send(self, number: int) -> None:
        os.kill(self.number, number)

    def end(self) -> int:
        """Wait for its end; its exit code, negative for a signal."""
        if not self.ended:
            self.ended.append(ask(self.forker, {"wait": self.number}))
        return self.ended[0]


def ask(forker: subprocess.Popen[str], line: dict[str, Any]) -> int:
    assert forker.stdin is not None and forker.stdout is not None
    forker.stdin.write(json.dumps(line) + "\n")
    forker.stdin.flush()
    return int(forker.stdout.readline())
