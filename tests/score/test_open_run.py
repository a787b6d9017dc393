"""A run is opened as it was trained, or refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rectune.config import Config
from rectune.errors import ModelError, RectuneError
from rectune.prompt.verbalizer import Verbalizer
from rectune.score.open_run import open_run
from rectune.score.settings import FILE_NAME, load_settings, settings_of

Make = Callable[..., Config]
WORDS = Verbalizer("Yes", "No", 1, 2, 3)


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture
def copy(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "copy", ignore=shutil.ignore_patterns("scoring")))


def test_settings_come_back_as_they_were_saved(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config(question="Ça va, {positive}?", history_shows="label", history_len=7, system_prompt="")
    settings = settings_of(config, WORDS, "hub/name", "abc", "bfloat16", "hash")
    settings.save(tmp_path)
    back = load_settings(tmp_path)
    assert back == settings
    assert back.base_model == "hub/name" and back.dtype == "bfloat16" and back.quantization is None
    other = back.config(tiny_config())
    assert (other.question, other.history_shows, other.history_len) == ("Ça va, Yes?", "label", 7)
    assert other.system_prompt == ""
    assert settings_of(other, WORDS, "hub/name", "abc", "bfloat16", "hash") == settings
    back.check_verbalizer(WORDS)


@pytest.mark.parametrize(("values", "bits"), [({"use_qlora": True}, "4-bit"), ({"quantization_bit": 8}, "8-bit")])
def test_the_quantisation_is_recorded(tiny_config: Make, values: dict[str, Any], bits: str) -> None:
    assert settings_of(tiny_config(**values), WORDS, "x", None, "float32", "hash").quantization == bits


def test_other_label_tokens_are_refused(tiny_config: Make) -> None:
    settings = settings_of(tiny_config(), WORDS, "x", None, "float32", "hash")
    with pytest.raises(ModelError, match=r"label tokens differ.*tokenizer has changed") as caught:
        settings.check_verbalizer(replace(WORDS, positive_id=9))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"3", b'"text"', b"{}", b"\xff\xfe",
        b'{"base_model": "x"}',
        b'{"base_model":"x","base_revision":null,"prompt":[],"verbalizer":{},"data_hash":""}',
        b'{"base_model":"x","base_revision":null,"prompt":null,"verbalizer":{},"data_hash":""}',
    ],
)  # fmt: skip
def test_damaged_settings_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ModelError, match=r"rectune\.json: damaged .*copy it from a checkpoint") as caught:
        load_settings(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_settings_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no rectune\.json; give the output_dir of a finished rectune training run"):
        load_settings(tmp_path)


def test_settings_of_a_newer_version_may_hold_more(tiny_config: Make, tmp_path: Path) -> None:
    settings = settings_of(tiny_config(), WORDS, "x", None, "float32", "hash")
    (tmp_path / FILE_NAME).write_text(json.dumps(asdict(settings) | {"later": 1}))
    assert load_settings(tmp_path) == settings


def test_a_run_and_its_checkpoint_open_alike(copy: Path) -> None:
    inside = copy / "checkpoint-4"
    inside.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", FILE_NAME):
        shutil.copy(copy / name, inside / name)
    first, second = open_run(copy, [], silent), open_run(inside, [], silent)
    assert first.adapter_hash == second.adapter_hash
    assert first.config == second.config


def refused(folder: Path, overrides: list[str]) -> str:
    with pytest.raises(RectuneError) as caught:
        open_run(folder, overrides, silent)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_run_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    assert "no such run folder" in refused(tmp_path / "nothing", [])
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert "no config.yaml here" in refused(tmp_path / "a" / "b", [])
    (copy / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in refused(copy, [])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("question=Really?", "question: got 'Really?'"),
        ("history_len=3", "history_len: got 3, but the adapter was trained with 15"),
        ("prompt_format=completion", "prompt_format: got 'completion'"),
        ("cutoff_len=2048", "cutoff_len: got 2048, but the adapter was trained with 1024"),
    ],
)
def test_a_prompt_key_with_another_value_is_refused(copy: Path, override: str, told: str) -> None:
    assert refused(copy, [override]).startswith(told)


def test_other_keys_and_equal_values_may_be_overridden(copy: Path) -> None:
    run = open_run(copy, ["per_device_eval_batch_size=2", "history_len=15", "max_test_samples=3"], silent)
    assert (run.config.per_device_eval_batch_size, run.config.max_test_samples) == (2, 3)


def test_a_tokenizer_that_reads_the_labels_otherwise_is_refused(copy: Path) -> None:
    values = json.loads((copy / FILE_NAME).read_text())
    values["verbalizer"]["positive_id"] += 1
    (copy / FILE_NAME).write_text(json.dumps(values | {"sha256": None}))
    assert "the label tokens differ" in refused(copy, [])


def changed(folder: Path, **values: Any) -> Path:
    file = folder / FILE_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | values | {"sha256": None}))
    return folder


def test_the_base_is_loaded_at_the_revision_trained_on_unless_another_is_named(copy: Path) -> None:
    changed(copy, base_revision="abc")
    assert open_run(copy, [], silent).config.model_revision == "abc"
    assert open_run(copy, ["model_revision=def"], silent).config.model_revision == "def"
    changed(copy, base_model="another/model")
    assert open_run(copy, [], silent).config.model_revision is None


def test_another_precision_than_the_trainings_is_said(copy: Path) -> None:
    said: list[str] = []
    open_run(copy, [], said.append)
    assert not any("trained in" in line for line in said)
    open_run(changed(copy, dtype="bfloat16"), [], said.append)
    assert "precision: trained in bfloat16, scored in float32: scores move a little" in said


def test_another_quantisation_than_the_trainings_is_refused(copy: Path) -> None:
    assert "quantization_bit: the base model would be loaded 8-bit, but" in refused(copy, ["quantization_bit=8"])
    changed(copy, quantization="4-bit")
    assert "loaded unquantised, but the adapter was trained on it 4-bit" in refused(copy, ["use_qlora=false"])


@pytest.mark.parametrize(("key", "value"), [("temperature", -2.0), ("prior", -0.5)])
def test_a_correction_that_cannot_be_applied_is_refused(copy: Path, key: str, value: float) -> None:
    assert f"{key} is {value}, and this version cannot apply it" in refused(changed(copy, **{key: value}), [])
