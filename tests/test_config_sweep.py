"""The search space of a sweep: read as the keys read it, refused with every problem at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.config import Config, load_config, parse_config, parse_override
from rectune.config_sweep import FIXED, Choices, Range, search_space
from rectune.errors import ConfigError

REPO = Path(__file__).parent.parent


def problems(sweep: Any, **values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config({"sweep": sweep, **values}, origin="test")
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_a_space_is_read_as_its_keys_read_their_values() -> None:
    # YAML 1.1 reads 1e-5, which has no dot, as a text.
    sweep = {"learning_rate": {"low": "1e-5", "high": 1e-3, "log": True}, "lora_rank": [8, 16.0], "packing": [0, "yes"]}
    space = search_space(parse_config({"sweep": sweep}, "test"))
    assert space == {
        "learning_rate": Range(1e-5, 1e-3, log=True),
        "lora_rank": Choices((8, 16)),
        "packing": Choices((False, True)),
    }
    assert isinstance(space["learning_rate"].low, float) and isinstance(space["lora_rank"].values[1], int)


def test_the_space_can_be_given_on_the_command_line_and_survives_yaml(tmp_path: Path) -> None:
    text = "sweep={learning_rate: {low: 1e-5, high: 1e-3, log: true}, lora_target: [all, [q_proj, v_proj]]}"
    assert isinstance(parse_override(text)[1], dict)
    (tmp_path / "empty.yaml").write_text("", encoding="utf-8")
    config = load_config(tmp_path / "empty.yaml", [text])
    (tmp_path / "again.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == config
    assert search_space(config)["lora_target"] == Choices(("all", ["q_proj", "v_proj"]))


def test_a_template_is_still_no_mapping() -> None:
    assert parse_override("item_text={title}") == ("item_text", "{title}")


def test_every_problem_of_a_space_is_reported_each_on_its_line_with_what_is_allowed() -> None:
    assert problems(
        {
            "learning_rate": {"low": 0, "high": 1e-3, "log": True},
            "lora_rank": [8, 0, "x"],
            "lora_rnk": [1, 2],
            "seed": [1, 2],
            "packing": {"low": 0, "high": 1},
            "optim": ["adamw_torch", "sgd"],
            "weight_decay": {"low": 0.5, "hihg": 1},
            "max_grad_norm": 3,
        }
    ) == [
        "sweep.learning_rate: low: got 0, allowed: greater than 0",
        "sweep.lora_rank: got 0, allowed: greater than or equal to 1",
        "sweep.lora_rank: got 'x', allowed: a valid integer, unable to parse string as an integer",
        "sweep.lora_rnk: unknown key; a sweep varies keys of the configuration",
        "sweep.seed: this key cannot vary: the best of several seeds is luck, and the next data would not share it",
        "sweep.packing: low: got 0, but this key holds no number: give a list of values in place of a range",
        "sweep.packing: high: got 1, but this key holds no number: give a list of values in place of a range",
        "sweep.optim: got 'sgd', allowed: 'adamw_torch', 'adamw_torch_fused', 'adamw_8bit', 'paged_adamw_32bit' or "
        "'paged_adamw_8bit'",
        "sweep.weight_decay: got {'low': 0.5, 'hihg': 1}, allowed: low and high, and one of log: true and step: NUMBER",
        "sweep.max_grad_norm: got 3, allowed: a list of values, or {low: NUMBER, high: NUMBER}",
    ]


@pytest.mark.parametrize(
    ("key", "given", "said"),
    [
        ("lora_rank", [16], "at least two values; a single one is set as lora_rank itself"),
        ("lora_rank", [16, 8, 16.0], "which names a value twice"),
        ("lora_dropout", {"low": 0.3, "high": 0.1}, "allowed: low below high"),
        ("weight_decay", {"low": 0, "high": 0.1, "log": True}, "log: got true with low 0.0, allowed: low above 0"),
        ("lora_alpha", {"low": 16, "high": 64, "log": "maybe"}, "log: got 'maybe', allowed: true or false"),
        ("lora_alpha", {"low": 16, "high": 64, "log": True, "step": 16}, "step: got one beside log: true"),
        ("lora_rank", {"low": 8, "high": 32, "step": 0.5}, "step: got 0.5, allowed: a whole number above 0"),
        ("lora_rank", {"low": 8, "high": 32, "step": "x"}, "step: got 'x', allowed: a whole number above 0"),
        ("lora_rank", {"low": 4, "high": 8}, "leaves out the configuration's own 16"),
        ("lora_rank", {"low": 3, "high": 32, "step": 5}, "leaves out the configuration's own 16"),
        ("lora_target", ["all", "nose"], "got 'nose', allowed: all, attention, qv or a list"),
        ("prior", ["none", "item_rate"], "gen_eval_samples: a generated answer cannot have a prior added"),
    ],
)
def test_a_range_or_list_that_cannot_be_searched_is_refused(key: str, given: Any, said: str) -> None:
    (line,) = problems({key: given}, gen_eval_samples=3)
    assert line.startswith(f"sweep.{key}: ") and said in line


def test_a_value_may_need_another_that_is_varied_too() -> None:
    # An instruction cannot be a stream, but it can be pointwise, and the layout varies beside it.
    both = {"layout": ["stream", "pointwise"], "prompt_format": ["chat", "instruction"]}
    assert set(search_space(parse_config({"sweep": both}, "test"))) == set(both)
    (line,) = problems({"prompt_format": ["chat", "instruction"]})
    assert line.startswith("sweep.prompt_format: got 'instruction' beside layout: stream")


def test_what_comes_from_an_earlier_adapter_cannot_vary() -> None:
    (line,) = problems({"lora_rank": [8, 16]}, adapter_name_or_path="x")
    assert line == "sweep.lora_rank: this key cannot vary: it comes from adapter_name_or_path"
    assert set(search_space(Config(adapter_name_or_path=Path("x")))) == {"learning_rate", "gradient_accumulation_steps"}


VARIES = """
    model_name_or_path model_revision adapter_name_or_path layout prompt_format prompt_domain system_prompt instruction
    history_header candidate_header question stream_header stream_cue window_overlap history_drop history_shuffle
    shuffle_moments history_shows item_text item_rate_text prior item_rate_from item_rate_strength positive_label
    negative_label cutoff_len use_qlora quantization_bit lora_rank lora_alpha lora_dropout lora_target lora_layers
    lora_bias use_rslora use_dora init_lora_weights loraplus_lr_ratio per_device_train_batch_size
    gradient_accumulation_steps learning_rate num_train_epochs lr_scheduler_type warmup_ratio weight_decay
    max_grad_norm optim loss_over class_weights label_smoothing focal_gamma packing gradient_checkpointing flash_attn
    bf16 fp16 oversample rubric
"""


def test_of_every_key_it_is_said_whether_it_may_vary() -> None:
    """A new key goes into FIXED with its reason, or into the list above."""
    assert not set(FIXED) & set(VARIES.split())
    assert set(FIXED) | set(VARIES.split()) == set(Config.model_fields)


@given(st.floats(1e-7, 1), st.integers(1, 99), st.floats(0, 0.9), st.integers(1, 64))
def test_the_shipped_space_always_holds_the_configurations_own_settings(
    rate: float, rank: int, dropout: float, steps: int
) -> None:
    config = Config(learning_rate=rate, lora_rank=rank, lora_dropout=dropout, gradient_accumulation_steps=steps)
    space = search_space(config)
    assert list(space) == ["learning_rate", "lora_rank", "lora_dropout", "gradient_accumulation_steps"]
    assert all(getattr(config, key) in part for key, part in space.items())
    # Written into a configuration, it is as valid as any other.
    written = {
        key: list(part.values) if isinstance(part, Choices) else {"low": part.low, "high": part.high, "log": True}
        for key, part in space.items()
    }
    assert search_space(config.with_overrides(sweep=written)) == space


@pytest.mark.parametrize("path", sorted((REPO / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_can_be_swept_as_it_is(path: Path) -> None:
    config = load_config(path)
    assert all(getattr(config, key) in part for key, part in search_space(config).items())


def test_a_step_counts_from_the_low_end() -> None:
    assert 0.3 in Range(0.0, 0.5, step=0.1) and 0.25 not in Range(0.0, 0.5, step=0.1)
    assert 0.6 not in Range(0.0, 0.5, step=0.1) and 0.5 in Range(0.0, 0.5)
    assert str(Range(1e-5, 0.002, log=True)) == "1e-05 to 0.002, log" and str(Range(0, 8, step=2)) == "0 to 8, step 2"
