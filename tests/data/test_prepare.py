from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from rectune import wording
from rectune.config import Config, parse_config
from rectune.data import prepare as stage
from rectune.data.prepare import history_slices, load_catalog, load_events, load_meta, prepare
from rectune.errors import ConfigError, DataError, ResourceError

Write = Callable[..., Path]


def silent(line: str) -> None:
    pass


def config_for(source: Path, folder: Path, **values: Any) -> Config:
    return Config(dataset=str(source), dataset_dir=folder, **{"history_len": 2, **values})


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture
def config(write_set: Write, tmp_path: Path) -> Config:
    return config_for(write_set(), tmp_path / "data" / "toy")


def test_the_folder_holds_every_file_and_the_events_in_order(config: Config) -> None:
    folder = prepare(config, say=silent)
    names = "catalog.parquet dataset_info.json eval.json events.parquet meta.json rejects.csv rejects.parquet"
    assert list(bytes_of(folder)) == [*names.split(), "test_raw.jsonl", "train.json"]
    events = load_events(folder)
    assert events["user_id"].to_list() == ["2"] * 6 + ["10"] * 6  # user 3 has no more than history_len events
    assert events["item_id"].to_list() == ["1", "2", "3", "4", "2", "5", "1", "2", "3", "4", "5", "1"]
    assert events["row_id"].to_list() == [7, 8, 9, 10, 11, 6, 0, 1, 2, 3, 4, 5]
    assert events["history_end"].to_list() == [0, 1, 1, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert events["split"].to_list() == ["warmup", "warmup", "train", "train", "validation", "test"] * 2
    assert events["label"].to_list() == [1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 0]
    assert load_catalog(folder).height == 5


def test_an_alpaca_record_is_made_by_the_one_builder_of_prompts(config: Config) -> None:
    folder = prepare(config, say=silent)
    records = json.loads((folder / "train.json").read_text())
    texts = wording.texts_for(config)
    # User 2's third event is of one moment with the second, so its history is the first alone.
    lines = [wording.history_line(1, "Usual Suspects, The (1995)", 4.0, "Yes", "rating")]
    assert records[0] == {
        "instruction": texts.instruction,
        "input": wording.user_input(texts, lines, "Hyena Road (2015)"),
        "output": "Yes",
        "system": texts.system,
        "history": [],
    }
    assert len(records) == 4
    assert [record["output"] for record in json.loads((folder / "eval.json").read_text())] == ["Yes", "Yes"]


def test_a_raw_test_row_holds_titles_ids_and_label(config: Config) -> None:
    folder = prepare(config, say=silent)
    rows = [json.loads(line) for line in (folder / "test_raw.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "user_id": "2",
        "history_titles": ['Say "Hello" (2001)', "Babylon 5"],
        "history_ratings": [5.0, 4.0],
        "history_item_ids": ["4", "2"],
        "candidate_title": "Heat (1995)",
        "candidate_item_id": "5",
        "label": "No",
        "row_id": 6,
        "timestamp": 1000000900,
    }
    assert len(rows) == 2


def test_label_words_item_text_and_what_the_history_shows_reach_the_records(write_set: Write, tmp_path: Path) -> None:
    values = {"positive_label": "Good", "negative_label": "Bad", "item_text": "{title}, {genres}"}
    config = config_for(write_set(), tmp_path / "toy", history_shows="label", **values)
    folder = prepare(config, say=silent)
    record = json.loads((folder / "train.json").read_text())[0]
    assert record["output"] == "Good"
    assert "Usual Suspects, The (1995), Crime, Mystery, Thriller → Good" in record["input"]


def test_the_registry_names_both_alpaca_files(config: Config) -> None:
    info = json.loads((prepare(config, say=silent) / "dataset_info.json").read_text())
    assert {name: entry["file_name"] for name, entry in info.items()} == {
        "raw_train": "train.json",
        "raw_eval": "eval.json",
    }
    assert info["raw_train"]["formatting"] == "alpaca"
    assert info["raw_train"]["columns"]["query"] == "input"


def test_meta_counts_what_was_kept_left_out_and_rejected(write_set: Write, tmp_path: Path) -> None:
    folder = prepare(config_for(write_set(more_ratings=("x,1,4.0,1",)), tmp_path / "toy"), say=silent)
    meta = load_meta(folder)
    assert meta["splits"]["train"] == {"rows": 4, "positive": 3, "positive_rate": 0.75}
    assert meta["left_out"]["users_with_too_few_events"] == 1
    assert meta["left_out"]["their_events"] == 2
    assert meta["rejects"] == {"rows": 1, "by_reason": {"ratings.csv: user id is not a whole number": 1}}
    assert (folder / "rejects.csv").read_text().splitlines()[1] == (
        'ratings.csv,16,user id is not a whole number,"x,1,4.0,1"'
    )
    assert pl.read_parquet(folder / "rejects.parquet").height == 1


def test_the_same_input_gives_the_same_bytes_in_any_folder(config: Config, tmp_path: Path) -> None:
    first = bytes_of(prepare(config, say=silent))
    other = config.with_overrides(dataset_dir=tmp_path / "other")
    assert bytes_of(prepare(other, say=silent)) == first
    assert bytes_of(prepare(config, force=True, say=silent)) == first


def test_a_prepared_folder_is_used_again_until_something_changes(config: Config) -> None:
    said: list[str] = []
    folder = prepare(config, say=silent)
    before = (folder / "meta.json").stat().st_mtime_ns
    prepare(config, say=said.append)
    assert (folder / "meta.json").stat().st_mtime_ns == before
    assert "used as it is" in said[0]
    prepare(config.with_overrides(history_len=3), say=said.append)
    assert "history_len has changed from 2 to 3" in said[1]
    said.clear()
    prepare(config.with_overrides(history_len=3, question="Well?"), say=said.append)
    assert "question has changed from 'Will the user" in said[0]
    said.clear()
    prepare(config.with_overrides(history_len=3, question="Well?"), force=True, say=said.append)
    assert "asked for" in said[0]


def test_a_changed_source_is_prepared_again(config: Config, write_set: Write) -> None:
    prepare(config, say=silent)
    write_set(more_ratings=("10,2,5.0,1000000700",))
    said: list[str] = []
    folder = prepare(config, say=said.append)
    assert "its source is another" in said[0]
    assert load_events(folder).height == 13


def test_a_local_copy_stands_in_for_the_published_set_of_its_name(config: Config, write_set: Write) -> None:
    local = write_set(name="ml-latest-small")
    prepare(config.with_overrides(dataset=str(local)), say=silent)
    said: list[str] = []
    prepare(config.with_overrides(dataset="ml-latest-small"), say=said.append)
    assert said == [f"{config.dataset_folder()}: already prepared from a local copy of ml-latest-small with the same "
                    "settings; used as it is"]  # fmt: skip


def test_the_seed_matters_only_where_users_are_drawn(config: Config) -> None:
    prepare(config, say=silent)
    said: list[str] = []
    prepare(config.with_overrides(seed=7), say=said.append)
    assert "used as it is" in said[0]
    folder = prepare(config.with_overrides(seed=7, max_users=1), say=silent)
    assert load_events(folder)["user_id"].n_unique() == 1
    assert load_meta(folder)["left_out"]["users_not_drawn"] == 1


def test_content_hash_changes_with_one_rating_but_not_with_the_texts(config: Config, write_set: Write) -> None:
    first = load_meta(prepare(config, say=silent))["content_hash"]
    assert load_meta(prepare(config.with_overrides(question="Well?"), say=silent))["content_hash"] == first
    write_set(more_ratings=("10,2,5.0,1000000700",))
    assert load_meta(prepare(config, say=silent))["content_hash"] != first


def test_a_damaged_folder_is_reported_by_the_loaders_and_prepared_again(config: Config) -> None:
    folder = prepare(config, say=silent)
    whole = bytes_of(folder)
    data = bytearray(whole["events.parquet"])
    data[100] ^= 255
    (folder / "events.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"events\.parquet: damaged.*rectune prepare CONFIG"):
        load_events(folder)
    (folder / "events.parquet").write_bytes(b"")
    prepare(config, say=silent)
    assert bytes_of(folder) == whole


def test_loaders_say_what_to_run_where_nothing_is_prepared(tmp_path: Path) -> None:
    for load in (load_events, load_catalog, load_meta):
        with pytest.raises(DataError, match="run `rectune prepare CONFIG`"):
            load(tmp_path)


def test_bad_input_leaves_an_existing_folder_as_it_was(config: Config, write_set: Write) -> None:
    folder = prepare(config, say=silent)
    before = bytes_of(folder)
    write_set(ratings=b"userId,movieId\n1,2\n")
    with pytest.raises(DataError):
        prepare(config, say=silent)
    assert bytes_of(folder) == before


def test_a_full_disk_leaves_an_existing_folder_as_it_was(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare(config, say=silent)
    before = bytes_of(folder)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage.alpaca, "write_json_lines", full)
    with pytest.raises(ResourceError, match="disk is full"):
        prepare(config, force=True, say=silent)
    assert bytes_of(folder) == before
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_a_folder_of_someone_elses_files_is_never_replaced(config: Config) -> None:
    folder = config.dataset_folder()
    folder.mkdir(parents=True)
    (folder / "ratings.csv").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds other files \(ratings\.csv\)"):
        prepare(config, force=True, say=silent)
    assert (folder / "ratings.csv").read_text() == "precious"


def test_files_of_others_in_a_prepared_folder_are_kept(config: Config) -> None:
    folder = prepare(config, say=silent)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("kept")
    prepare(config, force=True, say=silent)
    assert (folder / "notes" / "mine.txt").read_text() == "kept"


def test_an_unknown_dataset_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"did you mean ml-latest-small\? allowed: ml-latest-small, ml-100k"):
        prepare(Config(dataset="ml-latest-smal"), say=silent)


def test_a_known_name_is_read_from_the_cache(
    write_set: Write, zipped: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    zipped(write_set()).rename(tmp_path / "cache" / "ml-1m.zip")
    folder = prepare(Config(dataset="ml-1m", dataset_dir=tmp_path / "toy", history_len=2), say=silent)
    assert load_meta(folder)["source"] == {"kind": "published", "name": "ml-1m"}
    assert load_events(folder).height == 12


def test_what_the_split_leaks_is_printed(config: Config) -> None:
    said: list[str] = []
    prepare(config, say=said.append)
    assert any("other users' later events are in train" in line for line in said)


def test_ml_latest_small_is_prepared_to_the_row(latest_small: Path, tmp_path: Path) -> None:
    config = Config(dataset=str(latest_small), dataset_dir=tmp_path / "small")
    said: list[str] = []
    folder = prepare(config, say=said.append)
    assert any("78,271 / 4,450 / 8,965" in line for line in said)
    events = load_events(folder)
    starts, stops = history_slices(events, config.history_len)
    raw = pl.read_ndjson(folder / "test_raw.jsonl")
    tests = events.with_row_index("row").filter(pl.col("split") == "test")
    lengths = [int(stops[row] - starts[row]) for row in tests["row"]]
    assert raw["history_titles"].list.len().to_list() == lengths
    # No history event of a test row is as late as the row itself.
    last = [events["timestamp"][int(stops[row]) - 1] if stops[row] > starts[row] else -1 for row in tests["row"]]
    assert all(past < now for past, now in zip(last, tests["timestamp"], strict=True))
    assert_frame_equal(raw.select("user_id", "row_id"), tests.select("user_id", pl.col("row_id").cast(pl.Int64)))
    assert sum(1 for _ in (folder / "train.json").open()) == 78_271 + 2


SPLIT_KEYS = {"test_ratio": 0.25, "validation_ratio": 0.1}
NEWCOMER = ("4,1,5.0,1000000950", "4,2,2.0,1000000950", "4,3,4.0,1000000960")


def test_a_cut_at_one_moment_reaches_every_file(write_set: Write, tmp_path: Path) -> None:
    said: list[str] = []
    source = write_set(more_ratings=NEWCOMER)
    config = config_for(source, tmp_path / "toy", split="global_time", **SPLIT_KEYS)
    folder = prepare(config, say=said.append)
    # Nine usable events: a quarter is nearest to the two from 900 on, a tenth to the one from 600 on.
    assert load_meta(folder)["cuts"] == {
        "usable_events": 9,
        "validation": {"from_timestamp": 1000000600, "usable": 1, "share_of_usable": 0.111111, "not_usable": 0},
        "test": {"from_timestamp": 1000000900, "usable": 2, "share_of_usable": 0.222222, "not_usable": 2},
    }
    events = load_events(folder)
    assert events["split"].to_list() == [
        *["warmup"] * 2, *["train"] * 3, "test",
        *["test"] * 3,
        *["warmup"] * 2, *["train"] * 3, "validation",
    ]  # fmt: skip
    raw = [json.loads(line) for line in (folder / "test_raw.jsonl").read_text().splitlines()]
    assert [(row["user_id"], row["candidate_item_id"], row["history_item_ids"]) for row in raw] == [
        ("2", "5", ["4", "2"]), ("4", "1", []), ("4", "2", []), ("4", "3", ["1", "2"]),
    ]  # fmt: skip
    assert [row["label"] for row in raw] == ["No", "Yes", "No", "Yes"]
    train, held_out = (json.loads((folder / name).read_text()) for name in ("train.json", "eval.json"))
    assert [record["output"] for record in train] == ["Yes", "Yes", "Yes", "Yes", "No", "Yes"]
    assert [record["output"] for record in held_out] == ["No"]
    assert load_meta(folder)["leak"] == {
        "share_of_test_events_with_later_train_events": 0.0,
        "test_events_of_cold_users": 3,
        "test_events_about_cold_items": 0,
        "note": said[-2],
    }
    assert said[-5] == (
        "test: begins at timestamp 1000000900 (2001-09-09 02:01:40 UTC) and holds 22.22% of the 9 usable events, and 2 "
        "events among their users' first 2"
    )
    assert "nothing of the future is seen; of 4 test events 3 (75.0%) are of users and 0" in said[-2]


def test_another_split_is_prepared_again_and_is_other_content(config: Config) -> None:
    said: list[str] = []
    hashes = {load_meta(prepare(config, say=silent))["content_hash"]}
    for before, split in (("timeline", "global_time"), ("global_time", "leave_one_out")):
        folder = prepare(config.with_overrides(split=split), say=said.append)
        assert f"split has changed from {before!r} to {split!r}" in "\n".join(said)
        hashes.add(load_meta(folder)["content_hash"])
    # Of so few events each user's last one is test by shares too, so that the hash tells the protocols apart.
    assert len(hashes) == 3


def test_the_ratios_matter_only_where_the_split_takes_shares(config: Config) -> None:
    said: list[str] = []
    one_out = config.with_overrides(split="leave_one_out")
    first = load_meta(prepare(one_out, say=silent))
    second = load_meta(prepare(one_out.with_overrides(test_ratio=0.6, validation_ratio=0.5), say=said.append))
    assert "used as it is" in said[0] and second == first
    assert "cuts" not in first and "test_ratio" not in first["protocol"]
    moment = config.with_overrides(split="global_time")
    prepare(moment, say=silent)
    prepare(moment.with_overrides(test_ratio=0.3), say=said.append)
    assert "test_ratio has changed from 0.1 to 0.3" in "\n".join(said)


def test_a_cut_at_one_moment_gives_the_same_bytes_again(config: Config, tmp_path: Path) -> None:
    moment = config.with_overrides(split="global_time")
    first = bytes_of(prepare(moment, say=silent))
    assert bytes_of(prepare(moment.with_overrides(dataset_dir=tmp_path / "other"), say=silent)) == first


def test_an_unknown_split_and_a_metric_that_it_leaves_empty_are_refused_in_one_line() -> None:
    for values, said in (
        (
            {"split": "weekly"},
            "split: got 'weekly', allowed: 'timeline', 'global_time', 'leave_one_out', 'column' or 'stratified'",
        ),
        (
            {"split": "leave_one_out", "metric_for_best_model": "uauc"},
            "metric_for_best_model: got 'uauc' beside split: leave_one_out",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_config(values, origin="test")
        assert said in str(caught.value) and len(str(caught.value).splitlines()) == 2
