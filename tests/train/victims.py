"""Training runs in processes of their own, to be killed, and what is compared afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectune.model.lora import ADAPTER_FILE

LONG: dict[str, Any] = {
    "max_steps": 16,
    "save_steps": 4,
    "eval_steps": 3,
    "logging_steps": 1,
    "early_stopping_patience": 0,
}


@dataclass
class Victim:
    """A `rectune train` in a process of its own, to be killed."""

    process: Any
    folder: Path
    ended: bool = False

    def send(self, number: int) -> None:
        self.process.send(number)

    def end(self) -> int:
        """Wait for its end and return its exit code, negative for a signal."""
        self.ended = True
        return int(self.process.end()[0])

    def text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


Start = Callable[..., Victim]


def logged(run: Path) -> list[dict[str, Any]]:
    file = run / "logs" / "log.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def wait_for_step(run: Path, step: int) -> None:
    """Wait until a running training has logged a step."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        file = run / "logs" / "log.jsonl"
        if file.is_file() and f'"step": {step}}}' in file.read_text(encoding="utf-8"):
            return
        time.sleep(0.002)
    raise AssertionError(f"step {step} was never reached")


def adapter(run: Path) -> bytes:
    return (run / ADAPTER_FILE).read_bytes()


def steps(run: Path, key: str) -> list[int]:
    return [log["step"] for log in logged(run) if key in log]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
