"""llama.cpp itself loads what was written, and reads and answers as rectune does. Run with `make test-slow`.

Needs llama-cpp-python: pip install -e '.[gguf]', which compiles for some minutes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import card_says, own_probability, silent, write_run

from rectune.errors import ModelError
from rectune.export.clients import ask_llama_cpp
from rectune.export.export import export
from rectune.export.gguf import F16, Q4_K_M, Q8_0
from rectune.export.prompt_template import template_of
from rectune.prompt.events import Event
from rectune.score.candidates import Candidate, CandidateScorer, Request
from rectune.score.open_run import open_run

pytestmark = pytest.mark.slow
llama_cpp = pytest.importorskip("llama_cpp")
ODD = [
    "Heat (1995)", "L'été — 日本語 (2001)!", "👩‍👩‍👧 family", "…And Justice for All", "12 Monkeys", "1. 2. 3.",
    "don't 'RE We'Ve", "  inside ", "\u2028para", "½ ① ﬁ", "a" * 90, "\u0301accent", "=)  $ →",
    "1995 20012 3333333 x1x22", "</s> [INST] <b>",
]  # fmt: skip


@pytest.mark.parametrize("which", ["stream_run", "pointwise_run"])
def test_it_answers_as_the_run_in_f16_and_q8_0(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = request.getfixturevalue(which)
    lines: list[str] = []
    folder = export(run, [], "gguf", tmp_path / "out", lines.append, [F16, Q8_0])
    assert [line.split(":")[1] for line in lines if line.startswith("check")] == [
        " gguf f16, by llama.cpp, 24 pairs",
        " gguf q8_0, by llama.cpp, 24 pairs",
    ]
    # By the code of its own card, with temperature and offset.
    assert card_says(folder, capsys) == pytest.approx(own_probability(run), abs=0.02)
    opened = open_run(run, [], silent)
    template = template_of(opened.prompts)
    history = [Event(ODD[0], 4.5, 1), Event(ODD[3], 1.0, 0)]
    (own,) = CandidateScorer(opened, silent, calibrated=False).score(
        [Request(history, [Candidate(title.strip()) for title in ODD])]
    )
    texts = [template.text(history, title.strip()) for title in ODD]
    asked, tokens = ask_llama_cpp(folder / "model-f16.gguf", texts, opened.prompts.verbalizer)
    assert tokens == [opened.prompts.build(history, title.strip()).tokens for title in ODD]
    assert np.abs(asked - own).max() < 0.1


def test_a_llama_with_a_head_of_its_own_too(tmp_path: Path, movielens: Path, qwen3_tokenizer: object) -> None:
    """Rows of 256, which 4 bits in q4_k_m need."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(qwen3_tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=2,  # type: ignore[arg-type]
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=False,
            initializer_range=0.1,
        )
    ).save_pretrained(tmp_path / "model")  # fmt: skip
    qwen3_tokenizer.save_pretrained(tmp_path / "model")  # type: ignore[attr-defined]
    run = write_run(tmp_path, tmp_path / "model", movielens, layout="stream", history_shows="label", spread=0.2)
    lines: list[str] = []
    # So small a model loses much, which has to be accepted.
    with pytest.raises(ModelError, match=r"gguf q4_k_m, by llama.cpp: the weights are right, but quantisation costs"):
        export(run, [], "gguf", tmp_path / "out", silent, [Q4_K_M])
    folder = export(run, [], "gguf", tmp_path / "out", lines.append, [Q4_K_M], accept_loss=True)
    assert any(line.startswith("weights: gguf q4_k_m: every layer holds the adapter's change once") for line in lines)
    assert [file.name for file in folder.glob("*.gguf")] == ["model-q4_k_m.gguf"]
    assert set(json.loads((folder / "scoring.json").read_text())["check"]) == {"q4_k_m"}
    assert any("gguf q4_k_m, by llama.cpp" in line for line in lines)


def test_what_is_no_gguf_is_one_line(tmp_path: Path) -> None:
    from rectune.export.quantise import quantise

    (tmp_path / "x.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(ModelError, match=r"llama.cpp cannot quantise it to q4_k_m"):
        quantise(tmp_path / "x.gguf", tmp_path / "y.gguf")
