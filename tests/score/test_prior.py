"""Item rates saved beside an adapter: written wherever it is, whole or refused, without the held-out labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from rectune.config import Config, parse_config
from rectune.errors import ModelError
from rectune.files import hash_file
from rectune.prompt.dataset import open_dataset
from rectune.prompt.verbalizer import Verbalizer
from rectune.score.open_run import open_run
from rectune.score.settings import FILE_NAME, RATES, load_settings, settings_of

WORDS = Verbalizer("Yes", "No", 1, 2, 3)


def silent(_line: str) -> None:
    """Say nothing."""


def config_of(root: Path, model: Path, data: Path, **values: Any) -> Config:
    base: dict[str, Any] = {
        "model_name_or_path": str(model), "dataset": str(data), "dataset_dir": str(root / "data"), "bf16": False,
        "output_dir": str(root / "run"), "preprocessing_cache_dir": str(root / "cache"), "report_to": "none",
        "layout": "stream", "prompt_format": "completion", "cutoff_len": 300, "prior": "item_rate",
        "item_rate_text": True, "max_steps": 2, "eval_steps": 1, "save_steps": 1, "learning_rate": 0.01,
    }  # fmt: skip
    return parse_config({**base, **values}, origin="test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path) -> Path:
    from rectune.train.train import train

    config = config_of(tmp_path_factory.mktemp("prior"), tiny_qwen3, movielens)
    return train(config, silent, Console(quiet=True))


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def settings(config: Config, events: pl.DataFrame) -> Any:
    return settings_of(config, WORDS, "x", None, "float32", "hash", events)


def test_the_rates_lie_beside_every_saved_adapter(trained: Path) -> None:
    folders = {file.parent.relative_to(trained).as_posix() for file in trained.rglob("adapter_model.safetensors")}
    assert {".", "best", "checkpoint-2", "checkpoint-2/kept/best"} <= folders
    hashes = set()
    for folder in folders:
        saved = json.loads((trained / folder / FILE_NAME).read_text(encoding="utf-8"))
        assert saved["prior"].pop("sha256") == hash_file(trained / folder / RATES)
        assert saved["prior"] == {"kind": "item_rate", "file": RATES}
        assert "rates" not in saved
        hashes.add(hash_file(trained / folder / RATES))
        assert load_settings(trained / folder).item_rates
    assert len(hashes) == 1
    open_run(trained / "checkpoint-2", [], silent)


def test_the_rates_are_those_of_the_training_events_worked_out_here(trained: Path) -> None:
    events = pl.read_parquet(trained.parent / "data" / "events.parquet").filter(
        pl.col("split").is_in(["warmup", "train"])
    )
    labels: dict[str, list[int]] = {}
    for item, label in events.select("item_id", "label").iter_rows():
        labels.setdefault(item, []).append(label)
    mean = (sum(map(sum, labels.values())) + 1) / (events.height + 2)
    found = load_settings(trained).item_rates
    assert set(found) == {*labels, None}
    assert found[None] == (pytest.approx(mean), 0)
    for item, mine in labels.items():
        assert found[item] == (pytest.approx((sum(mine) + 5 * mean) / (len(mine) + 5)), len(mine))


@pytest.mark.parametrize("source", ["earlier", "other_users"])
def test_held_out_labels_do_not_show_in_the_table(
    tmp_path: Path, tiny_qwen3: Path, movielens: Path, source: str
) -> None:
    config = config_of(tmp_path, tiny_qwen3, movielens, item_rate_from=source)
    events = open_dataset(config, silent).events
    held = pl.col("split").is_in(["validation", "test"])
    turned = events.with_columns(label=pl.when(held).then(1 - pl.col("label")).otherwise(pl.col("label")))
    first, second = settings(config, events), settings(config, turned)
    assert first.rates == second.rates and first.prior == second.prior
    learnt = events.with_columns(label=1 - pl.col("label"))
    assert settings(config, learnt).rates != first.rates


def test_settings_with_rates_come_back_as_they_were_saved(tmp_path: Path, tiny_qwen3: Path, movielens: Path) -> None:
    config = config_of(tmp_path, tiny_qwen3, movielens, prior="none")
    saved = settings(config, open_dataset(config, silent).events)
    saved.save(tmp_path / "here")
    assert saved.prior["kind"] == "none"
    assert load_settings(tmp_path / "here") == saved
    plain = config.with_overrides(item_rate_text=False)
    assert settings(plain, open_dataset(config, silent).events).prior is None


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_run(folder, [], silent)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_damaged_rates_are_one_line(copy: Path) -> None:
    file = copy / RATES
    content = file.read_bytes()
    for damaged in (b"", content[:-20], content[:50] + b"!" + content[51:], content + b" "):
        file.write_bytes(damaged)
        assert refused(copy).startswith(f"{file}: damaged (its content is not what {FILE_NAME} records)")
    file.unlink()
    assert f"no {RATES}, which {FILE_NAME} names" in refused(copy)


@pytest.mark.parametrize(
    "change",
    [{"kind": "boosting"}, {"kind": "none"}, {"kind": None}, {"file": "../elsewhere.parquet"}, {"sha256": None}],
)
def test_a_prior_of_another_kind_is_refused(copy: Path, change: dict[str, Any]) -> None:
    values = json.loads((copy / FILE_NAME).read_text(encoding="utf-8"))
    values["prior"] |= change
    (copy / FILE_NAME).write_text(json.dumps(values | {"sha256": None}), encoding="utf-8")
    assert "and this version cannot apply it" in refused(copy)


def test_a_table_that_holds_no_rates_is_refused(copy: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(copy / RATES)
    values = json.loads((copy / FILE_NAME).read_text(encoding="utf-8"))
    values["prior"]["sha256"] = hash_file(copy / RATES)
    (copy / FILE_NAME).write_text(json.dumps(values | {"sha256": None}), encoding="utf-8")
    assert "damaged (it holds no item rates)" in refused(copy)
