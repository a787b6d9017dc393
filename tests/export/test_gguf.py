"""GGUF: what is written is read by transformers' own reader, and in slow tests by llama.cpp itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tiny_runs import silent, write_run

from rectune.errors import ModelError, ResourceError
from rectune.export import gguf as writer
from rectune.export import quantised
from rectune.export.export import export
from rectune.export.gguf import F16, Q4_K_M, Q8_0, write_gguf
from rectune.export.gguf_tokenizer import pre_tokenisation
from rectune.export.tokenizer import save_tokenizer


@pytest.fixture
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "has_llama_cpp", lambda: False)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, qwen3_tokenizer: Any) -> Path:
    """A random two-layer Llama whose head is a matrix of its own, with more rows than the tokenizer has tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=len(qwen3_tokenizer) + 3, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=False,
        initializer_range=0.2, eos_token_id=qwen3_tokenizer.eos_token_id,
        rope_parameters={"rope_theta": 5e4, "rope_type": "default"},
    )  # fmt: skip
    LlamaForCausalLM(settings).save_pretrained(folder)
    qwen3_tokenizer.save_pretrained(folder)
    return folder


def fields(file: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in GGUFReader(file).fields.items()}


@pytest.mark.usefixtures("without_llama_cpp")
@pytest.mark.parametrize("which", ["stream_run", "pointwise_run"])
def test_f16_and_q8_0_answer_as_the_run(which: str, request: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = export(request.getfixturevalue(which), [], "gguf", tmp_path / "out", lines.append, [F16, Q8_0])
    checks = [line for line in lines if line.startswith("check: gguf")]
    assert [line.split()[2].strip(",") for line in checks] == [F16, Q8_0]
    assert {file.name for file in folder.iterdir()} == {
        "model-f16.gguf", "model-q8_0.gguf", "Modelfile", "README.md", "scoring.json"
    }  # fmt: skip
    assert (folder / "Modelfile").read_text().startswith("FROM ./model-f16.gguf\n")
    small, large = (folder / f"model-{kind}.gguf" for kind in (Q8_0, F16))
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(small).tensors}
    assert types["blk.0.attn_q.weight"] == "Q8_0" and types["blk.1.attn_norm.weight"] == "F32"
    assert "output.weight" not in types  # tied: the embeddings are the head
    assert small.stat().st_size < large.stat().st_size


@pytest.mark.usefixtures("without_llama_cpp")
def test_a_llama_is_written_in_llama_cpps_order_of_rows(
    tiny_llama: Path, movielens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path, tiny_llama, movielens, layout="stream", history_shows="label")
    folder = export(run, [], "gguf", tmp_path / "out", silent, [F16])
    found = fields(folder / "model-f16.gguf")
    assert found["llama.rope.freq_base"] == pytest.approx(5e4) and found["llama.attention.head_count_kv"] == 2
    names = {tensor.name for tensor in GGUFReader(folder / "model-f16.gguf").tensors}
    assert "output.weight" in names
    monkeypatch.setattr(writer, "_permuted", lambda weight, _heads: weight)
    with pytest.raises(ModelError, match="does not answer as the trained model"):
        export(run, [], "gguf", tmp_path / "wrong", silent, [F16])


def test_the_tokenizer_is_written_as_it_is(tiny_llama: Path, qwen3_tokenizer: Any, tmp_path: Path) -> None:
    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_tokenizer(qwen3_tokenizer, tmp_path)
    write_gguf(tmp_path, tmp_path / "x.gguf", F16, "tiny", begins=False)
    found = fields(tmp_path / "x.gguf")
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    count = len(qwen3_tokenizer)
    assert tokens[:count] == qwen3_tokenizer.convert_ids_to_tokens(range(count))
    assert tokens[count:] == [f"[PAD{index}]" for index in range(count, count + 3)] and types[count:] == [5, 5, 5]
    assert types[qwen3_tokenizer.convert_tokens_to_ids("<|im_end|>")] == 3  # control
    assert types[qwen3_tokenizer.convert_tokens_to_ids("<think>")] == 4  # added, but no control token
    assert found["tokenizer.ggml.pre"] == "qwen2" and found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.ggml.eos_token_id"] == qwen3_tokenizer.eos_token_id
    merges = json.loads(qwen3_tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert found["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]
    # Whoever renders the template without saying anything of thinking gets the prompt of training.
    template = found["tokenizer.chat_template"]
    rendered = qwen3_tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert rendered.endswith("<think>\n\n</think>\n\n")


def with_pre(tokenizer: Any, steps: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    found.backend_tokenizer.pre_tokenizer = steps
    return found


def test_the_rules_for_words_are_named_by_what_the_tokenizer_does(qwen3_tokenizer: Any) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Whitespace

    assert pre_tokenisation(qwen3_tokenizer) == "qwen2"
    own = ByteLevel(add_prefix_space=False, use_regex=True)
    assert pre_tokenisation(with_pre(qwen3_tokenizer, own)) == "gpt-2"
    assert pre_tokenisation(with_pre(qwen3_tokenizer, Sequence([Digits(individual_digits=True), own]))) == "smollm"
    for other in (
        Sequence([Digits(individual_digits=False), own]), Whitespace(), ByteLevel(add_prefix_space=True, use_regex=True)
    ):  # fmt: skip
        with pytest.raises(ModelError, match="rules for words are not known"):
            pre_tokenisation(with_pre(qwen3_tokenizer, other))


def test_a_weight_too_large_for_float16_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = 70_000.0
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj.weight holds 7e\+04, beyond the 65,504 .* --gguf-type q8_0"):
        write_gguf(tmp_path, tmp_path / "x.gguf", F16, "tiny", begins=False)


def test_q4_k_m_without_llama_cpp_is_refused_before_anything_is_asked(
    stream_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rectune.export import export as stage
    from rectune.export import quantise

    monkeypatch.setattr(quantise, "has_llama_cpp", lambda: False)
    monkeypatch.setattr(stage, "open_run", None)
    with pytest.raises(ResourceError, match=r"q4_k_m needs llama.cpp's quantiser: pip install"):
        export(stream_run, [], "gguf", tmp_path / "out", silent, [Q4_K_M])


def test_a_model_that_cannot_be_written_is_refused(stream_run: Path, tmp_path: Path) -> None:
    from types import SimpleNamespace

    for settings, message in (
        ({"architectures": ["GemmaForCausalLM"]}, "writes Llama, Qwen2, Qwen3, and this model is GemmaForCausalLM"),
        ({"architectures": ["LlamaForCausalLM"], "rope_parameters": {"rope_type": "llama3"}}, "positions of the kind"),
        ({"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True}, "a sliding window"),
    ):
        with pytest.raises(ModelError, match=message):
            writer.check_architecture(SimpleNamespace(**settings))


@pytest.mark.usefixtures("without_llama_cpp")
def test_a_wrong_scale_of_the_blocks_is_caught(
    stream_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = writer._stored

    def spoilt(name: str, weight: Any, kind: str) -> Any:
        return right(name, weight * np.float32(2) if "down_proj" in name else weight, kind)

    monkeypatch.setattr(writer, "_stored", spoilt)
    with pytest.raises(
        ModelError, match=r"down_proj.weight is off the merged weight by \S+% .*and 8 bits explain 1.0%"
    ):
        export(stream_run, [], "gguf", tmp_path / "out", silent, [Q8_0])
    assert not (tmp_path / "out").exists()
