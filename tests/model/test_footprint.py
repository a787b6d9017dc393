"""The memory model: components counted by hand for a tiny Qwen3, activations against a real backward graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.config import Config, parse_config
from rectune.errors import ModelError, ResourceError
from rectune.model import blocks
from rectune.model.footprint import Memory, Rows
from rectune.model.shape import ModelShape, model_shape

# The two-layer Qwen3 of the fixture: hidden 32, feed-forward 64, 4 heads of 8 with 2 for keys, tied embedding.
LINEAR = 32 * 32 + 32 * 16 * 2 + 32 * 32 + 3 * 32 * 64
NORMS = 2 * 32 + 2 * 8
SHAPE = ModelShape(
    blocks=2, hidden=32, inner=64, vocabulary=600, query=32, key=16, heads=4,
    linear={
        "q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32),
        "gate_proj": (32, 64), "up_proj": (32, 64), "down_proj": (64, 32),
    },
    parameters=600 * 32 + 2 * (LINEAR + NORMS) + 32, linear_parameters=2 * LINEAR, head_norms=True,
)  # fmt: skip


def memory(shape: ModelShape = SHAPE, width: int = 2, kernel: str = blocks.KERNEL, **keys: Any) -> Memory:
    config = parse_config({"lora_rank": 8, "lora_dropout": 0.0, **keys}, "test")
    return Memory(config, shape, "cpu", width, kernel, resident=0, slack=0.0)


def test_the_shape_of_a_folder_with_nothing_but_its_config_is_that_counted_by_hand(
    tiny_qwen3: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((tiny_qwen3 / "config.json").read_bytes())
    found = model_shape(Config(model_name_or_path=str(tmp_path)), print)
    vocabulary = found.vocabulary
    expected = replace(SHAPE, vocabulary=vocabulary, parameters=vocabulary * 32 + 2 * (LINEAR + NORMS) + 32)
    assert found == expected


def test_a_model_that_no_hub_gives_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ResourceError, match="the model hub cannot be reached") as caught:
        model_shape(Config(model_name_or_path="Nobody/Nothing-9B"), print)
    assert "\n" not in str(caught.value)


def test_another_family_is_refused_in_one_line() -> None:
    from transformers import GPT2Config

    with pytest.raises(ModelError, match="gpt2: its memory cannot be planned"):
        ModelShape.of(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10))


def test_what_stays_is_as_counted_by_hand() -> None:
    rest = SHAPE.parameters - 2 * LINEAR  # 2 x 9,216 weights are quantised, 19,392 numbers are not
    assert (LINEAR, rest) == (9216, 19_392)
    assert memory().weights() == 2 * SHAPE.parameters
    assert memory(quantization_bit=8).weights() == 2 * rest + 18_432 + 4 * 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)
    # half a byte each; 288 scales of one byte; 2 of four; 14 layers with tables of 272 float32
    assert memory(use_qlora=True).weights() == 2 * rest + 9216 + 288 + 8 + 14 * 1088
    # rank 8 times inputs + outputs: 64 + 48 + 48 + 64 + 96 + 96 + 96 = 512, in two blocks
    numbers = 2 * 8 * 512
    assert sum(SHAPE.adapter_sizes(memory().config)) == numbers
    assert memory().adapter() == numbers * 6 and memory(width=4).adapter() == numbers * 4
    assert memory(gradient_accumulation_steps=1).gradients() == memory(auto_batch=False).gradients() == numbers * 4
    assert memory(gradient_accumulation_steps=2).gradients() == numbers * 8
    assert memory().optimiser() == numbers * 8
    assert memory(optim="adamw_8bit").optimiser() == numbers * 8  # no matrix has 4,096 numbers
    # With rank 128 all but those of 16 columns have (and 128 x 32 is just enough): two moments of a byte, and a
    # scale of four bytes for 256; the four of 16 columns stay in float32.
    assert memory(optim="adamw_8bit", lora_rank=128).optimiser() == sum(
        8 * size if size < 4096 else 2 * size + 8 * size // 256
        for size in 2 * [128 * n for n in (32, 32, 32, 16, 32, 16, 32, 32, 32, 64, 32, 64, 64, 32)]
    )
    twice = memory(init_lora_weights="pissa")
    assert sum(SHAPE.adapter_sizes(twice.config)) == 2 * numbers
    assert twice.optimiser() == 2 * numbers * 8 + numbers * 4
    half = memory(lora_layers="upper_half", lora_target="qv", use_dora=True)
    assert sum(SHAPE.adapter_sizes(half.config)) == 8 * (64 + 48) + 32 + 16


def test_logits_are_those_of_answers_and_full_ones_those_of_every_token() -> None:
    rows = Rows(2, 100, 5, False)
    pointwise = memory(layout="pointwise").footprint(rows, None)
    assert pointwise.parts["logits"] == 12 * 600 * 10  # label and end token
    assert pointwise.full_logits == 12 * 600 * 200
    assert memory(layout="stream").footprint(rows, None).parts["logits"] == 12 * 600 * 5
    assert memory(layout="stream", loss_over="labels").footprint(rows, None).parts["logits"] == 0


def kept_bytes(folder: Path, config: Config, kernel: str, dtype: torch.dtype, masked: bool) -> int:
    """Bytes of all tensors that a real forward pass keeps for the backward pass, the weights' own left out."""
    from transformers import AutoModelForCausalLM, set_seed

    from rectune.model.answers import hidden_at
    from rectune.model.attention import attention_mask
    from rectune.model.lora import attach_adapter

    blocks.register()
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=kernel)
    model.requires_grad_(False)
    adapted = attach_adapter(model, config, "tiny", None)
    adapted.train()
    if config.gradient_checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, 300, (3, 200))
    mask = None
    if masked:
        run = torch.zeros(3, 200, dtype=torch.int64)
        mask = attention_mask(run, torch.zeros_like(run), torch.zeros_like(run), kernel, dtype)
    known = {parameter.untyped_storage().data_ptr() for parameter in adapted.parameters()}
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in known and not (mask is not None and pointer == mask.untyped_storage().data_ptr()):
            found[pointer] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_at(adapted, ids, torch.arange(3), torch.full((3,), 199), mask)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


CASES: list[tuple[str, torch.dtype, bool, dict[str, Any]]] = [
    (blocks.KERNEL, torch.bfloat16, True, {}),
    (blocks.KERNEL, torch.bfloat16, True, {"lora_layers": "upper_half"}),
    (blocks.KERNEL, torch.bfloat16, True, {"lora_dropout": 0.1}),
    (blocks.KERNEL, torch.bfloat16, True, {"lora_target": "qv"}),
    (blocks.KERNEL, torch.bfloat16, True, {"lora_target": ["q_proj", "down_proj"], "lora_layers": [0]}),
    (blocks.KERNEL, torch.bfloat16, True, {"init_lora_weights": "pissa"}),
    ("sdpa", torch.float32, True, {}),
    ("sdpa", torch.float32, False, {"lora_target": "attention"}),
    ("sdpa", torch.bfloat16, True, {}),
    ("eager", torch.bfloat16, True, {}),
    ("eager", torch.float32, True, {}),
]


@pytest.mark.parametrize(("kernel", "dtype", "masked", "keys"), CASES, ids=str)
def test_activations_are_those_that_a_real_backward_graph_keeps(
    kernel: str, dtype: torch.dtype, masked: bool, keys: dict[str, Any], tiny_qwen3: Path
) -> None:
    config = parse_config({"lora_rank": 8, "lora_dropout": 0.0, **keys}, "test")
    shape = model_shape(parse_config({"model_name_or_path": str(tiny_qwen3)}, "test"), print)
    plan = memory(shape, dtype.itemsize, kernel, **{"lora_dropout": 0.0, **keys})
    copies = plan.adapter() - 4 * sum(shape.adapter_sizes(config))
    planned = plan.activations(Rows(3, 200, 3, masked)) + copies
    assert planned == pytest.approx(kept_bytes(tiny_qwen3, config, kernel, dtype, masked), rel=0.03)


def test_with_checkpointing_each_block_keeps_its_input_and_one_all_of_its_own(tiny_qwen3: Path) -> None:
    keys: dict[str, Any] = {"lora_rank": 8, "lora_dropout": 0.0, "gradient_checkpointing": True}
    plan, rows = memory(**keys), Rows(3, 200, 3, True)
    inputs = plan.activations(rows) - plan._block(rows, True)
    assert inputs == 600 * 32 * 2 * 2
    # The last norm keeps its input in float32, and is done when the first block is computed again.
    kept = kept_bytes(tiny_qwen3, parse_config(keys, "test"), blocks.KERNEL, torch.bfloat16, True)
    assert kept == pytest.approx(inputs + 600 * 32 * 4, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 9), length=st.integers(1, 3000), kernel=st.sampled_from([blocks.KERNEL, "sdpa", "eager"]),
    width=st.sampled_from([2, 4]), layers=st.sampled_from(["all", "upper_half"]), dora=st.booleans(),
    dropout=st.sampled_from([0.0, 0.1]),
)  # fmt: skip
def test_more_rows_or_tokens_never_take_less_and_checkpointing_never_more(
    count: int, length: int, kernel: str, width: int, layers: str, dora: bool, dropout: float
) -> None:
    keys: dict[str, Any] = {"lora_layers": layers, "use_dora": dora, "lora_dropout": dropout}
    found = memory(width=width, kernel=kernel, **keys)
    here = found.footprint(Rows(count, length, count, True), Rows(count, length, count, True))
    for rows in (Rows(count + 1, length, count + 1, True), Rows(count, length + 1, count, True)):
        more = found.footprint(rows, rows)
        assert more.training >= here.training and more.evaluation >= here.evaluation
        assert all(more.parts[name] >= size for name, size in here.parts.items() if name != "workspace")
    checkpointed = memory(width=width, kernel=kernel, gradient_checkpointing=True, **keys)
    after = checkpointed.footprint(Rows(count, length, count, True), None).training
    # Of a single adapted block nothing is saved, and its input is kept besides.
    assert after <= here.training + (count * length * 32 * width if layers == "upper_half" else 0)
    quantised = memory(width=width, kernel=kernel, use_qlora=True, **keys)
    assert quantised.weights() < found.weights() + 14 * 1088
