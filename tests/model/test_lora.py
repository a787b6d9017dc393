"""Adapters: targets and layers by name, damaged and foreign ones refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rectune.config import Config
from rectune.errors import ModelError
from rectune.model.lora import ADAPTER_FILE, attach_adapter, check_effect, load_adapter, parameter_line, seal_adapter

Make = Callable[..., Config]
LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def base(tiny_qwen3: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_qwen3).requires_grad_(False)


def adapted(tiny_qwen3: Path, config: Config) -> Any:
    return attach_adapter(base(tiny_qwen3), config, str(tiny_qwen3), None)


def trained_places(model: Any) -> set[tuple[int, str]]:
    """(block, layer) of each adapted layer."""
    names = [name.split(".") for name, value in model.named_parameters() if value.requires_grad]
    return {(int(parts[parts.index("layers") + 1]), parts[parts.index("layers") + 3]) for parts in names}


@pytest.fixture
def saved(tiny_config: Make, tiny_qwen3: Path, tmp_path: Path) -> Path:
    """A folder with an adapter that has an effect."""
    torch.manual_seed(1)
    model = adapted(tiny_qwen3, tiny_config())
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("all", LINEAR),
        ("attention", ["q_proj", "k_proj", "v_proj", "o_proj"]),
        ("qv", ["q_proj", "v_proj"]),
        (["up_proj"], ["up_proj"]),
    ],
)
def test_the_targets_are_adapted_and_nothing_else(
    tiny_config: Make, tiny_qwen3: Path, target: Any, names: list[str]
) -> None:
    model = adapted(tiny_qwen3, tiny_config(lora_target=target))
    assert trained_places(model) == {(block, name) for block in (0, 1) for name in names}
    assert all(value.dtype == torch.float32 for value in model.parameters() if value.requires_grad)


@pytest.mark.parametrize(("layers", "blocks"), [("all", {0, 1}), ("upper_half", {1}), ([0], {0}), ([1], {1})])
def test_the_layers_are_adapted_and_no_others(
    tiny_config: Make, tiny_qwen3: Path, layers: Any, blocks: set[int]
) -> None:
    model = adapted(tiny_qwen3, tiny_config(lora_layers=layers))
    assert {block for block, _ in trained_places(model)} == blocks


def test_a_wrong_target_names_those_there_are(tiny_config: Make, tiny_qwen3: Path) -> None:
    with pytest.raises(ModelError, match=r"^lora_target: this model has no c_attn; it has down_proj, .*v_proj$"):
        adapted(tiny_qwen3, tiny_config(lora_target=["q_proj", "c_attn"]))


@pytest.mark.parametrize("layers", [[2], [-1], [0, 99]])
def test_a_wrong_layer_names_the_blocks_there_are(tiny_config: Make, tiny_qwen3: Path, layers: list[int]) -> None:
    with pytest.raises(ModelError, match=r"^lora_layers: got \[.*\], but this model's blocks are 0 to 1$"):
        adapted(tiny_qwen3, tiny_config(lora_layers=layers))


def test_the_parameter_line_counts_the_adapter(tiny_config: Make, tiny_qwen3: Path) -> None:
    # Rank 2 on q (32 to 32) and v (32 to 16) of two blocks: 2 * 2 * (64 + 48) = 448.
    line = parameter_line(adapted(tiny_qwen3, tiny_config(lora_target="qv", lora_rank=2)))
    assert line.startswith("448 of ")


def test_a_saved_adapter_comes_back_bit_by_bit(tiny_qwen3: Path, saved: Path) -> None:
    model = load_adapter(base(tiny_qwen3), saved)
    assert not model.training
    there = load_file(saved / ADAPTER_FILE)
    here = {name.replace(".default", ""): value for name, value in model.state_dict().items() if "lora_" in name}
    assert set(here) == set(there)
    assert all(torch.equal(here[name], there[name]) for name in there)
    trainable = load_adapter(base(tiny_qwen3), saved, trainable=True)
    assert any(value.requires_grad for value in trainable.parameters())


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_of_the_base_model_are_not_trained(tiny_config: Make, tiny_qwen3: Path, bias: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(tiny_qwen3, attention_bias=True)  # as Qwen2 has them
    model = AutoModelForCausalLM.from_config(settings).requires_grad_(False)
    with pytest.raises(ModelError, match=f"lora_bias: got '{bias}', but this model's biases would be trained"):
        attach_adapter(model, tiny_config(lora_bias=bias), str(tiny_qwen3), None)
    adapted(tiny_qwen3, tiny_config(lora_bias=bias))  # without biases there is nothing to refuse


def test_a_dora_adapter_comes_back(tiny_config: Make, tiny_qwen3: Path, tmp_path: Path) -> None:
    model = adapted(tiny_qwen3, tiny_config(use_dora=True))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                value.add_(0.1)
    model.save_pretrained(tmp_path / "dora")
    again = load_adapter(base(tiny_qwen3), tmp_path / "dora")
    ids = torch.arange(12).reshape(1, 12)
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)
        with again.disable_adapter():
            assert torch.equal(again(ids).logits, base(tiny_qwen3)(ids).logits)


def test_a_file_whose_tail_was_overwritten_with_zeros_is_refused_where_its_seal_lies(
    tiny_qwen3: Path, saved: Path
) -> None:
    seal_adapter(saved)
    load_adapter(base(tiny_qwen3), saved)
    content = (saved / ADAPTER_FILE).read_bytes()
    (saved / ADAPTER_FILE).write_bytes(content[:-64] + bytes(64))
    with pytest.raises(ModelError, match="damaged"):
        load_adapter(base(tiny_qwen3), saved)


def test_an_adapter_of_zeros_is_refused(tiny_config: Make, tiny_qwen3: Path, tmp_path: Path) -> None:
    adapted(tiny_qwen3, tiny_config()).save_pretrained(tmp_path / "fresh")
    with pytest.raises(ModelError, match="all zeros, so it changes no answer"):
        load_adapter(base(tiny_qwen3), tmp_path / "fresh")


@pytest.mark.parametrize("name", [ADAPTER_FILE, "adapter_config.json"])
def test_a_missing_file_is_named(tiny_qwen3: Path, saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ModelError, match=f"no {name}; give the output_dir"):
        load_adapter(base(tiny_qwen3), saved)


@pytest.mark.parametrize("name", [ADAPTER_FILE, "adapter_config.json"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, "half"])
def test_a_damaged_file_is_refused_in_one_line(tiny_qwen3: Path, saved: Path, name: str, content: Any) -> None:
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ModelError, match="damaged") as caught:
        load_adapter(base(tiny_qwen3), saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden_size": 64},
        {"num_hidden_layers": 4},
        {"num_hidden_layers": 1},
    ],
)
def test_an_adapter_made_for_other_shapes_is_refused(
    tiny_qwen3: Path, saved: Path, changed: dict[str, int], qwen3_tokenizer: Any
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    values = AutoConfig.from_pretrained(tiny_qwen3).to_dict()
    values.pop("layer_types", None)
    other = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(values | changed)))
    with pytest.raises(ModelError, match="does not fit the base model") as caught:
        load_adapter(other, saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{}, {"peft_type": "NONSENSE"}, {"peft_type": "LORA", "surplus_key": 1}, []])
def test_an_adapter_config_of_another_kind_is_refused_or_read(tiny_qwen3: Path, saved: Path, values: Any) -> None:
    (saved / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError) as caught:
        load_adapter(base(tiny_qwen3), saved)
    assert "\n" not in str(caught.value)


def test_tensors_under_other_names_are_refused(tiny_qwen3: Path, saved: Path) -> None:
    tensors = load_file(saved / ADAPTER_FILE)
    save_file(
        {name.replace("model.layers", "model.blocks"): value for name, value in tensors.items()}, saved / ADAPTER_FILE
    )
    with pytest.raises(ModelError, match="does not fit the base model"):
        load_adapter(base(tiny_qwen3), saved)


def test_an_adapter_without_effect_is_refused_and_one_with_a_small_effect_is_not() -> None:
    odds = torch.tensor([0.5, -1.0])
    with pytest.raises(ModelError, match="changes no answer at all"):
        check_effect(torch.nn.Identity(), odds, odds.clone())
    check_effect(torch.nn.Identity(), odds, odds + torch.tensor([0.0, 1e-7]))
