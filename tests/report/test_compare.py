import json

import numpy as np
import polars as pl
import pytest

from rectune.errors import DataError
from rectune.report.compare import check_same_rows, disagreements, split_by_outcome, write_comparison

LABELS = [1, 1, 0, 0, 1, 0]
USERS = ["a", "a", "b", "b", "c", "c"]
BASE = [-1.0, 2.0, 3.0, -1.0, 1.0, 1.0]  # wrong right wrong right right wrong
TUNED = [2.0, -2.0, 1.0, -3.0, -0.5, -4.0]  # right wrong wrong right wrong right


def test_rows_fall_into_the_part_worked_out_by_hand(make):
    parts = split_by_outcome(make(BASE, LABELS, USERS), make(TUNED, LABELS, USERS))
    assert parts.lora_improvements["row_id"].to_list() == [0, 5]
    assert parts.lora_regressions["row_id"].to_list() == [1, 4]
    assert parts.both_wrong["row_id"].to_list() == [2]
    assert parts.both_right["row_id"].to_list() == [3]
    assert parts.lora_improvements["tuned_log_odds"].to_list() == [2.0, -4.0]
    assert sum(parts.counts().values()) == 6


def test_the_threshold_moves_rows_between_parts(make):
    parts = split_by_outcome(make(BASE, LABELS, USERS), make(TUNED, LABELS, USERS), threshold=0.8)
    assert parts.counts() == {"lora_improvements": 2, "lora_regressions": 1, "both_wrong": 1, "both_right": 2}


def test_disagreements_are_the_largest_changes_of_both_kinds(make):
    rows = disagreements(make(BASE, LABELS, USERS), make(TUNED, LABELS, USERS), n=2)
    assert [(row["row_id"], row["outcome"]) for row in rows] == [(5, "improvement"), (1, "regression")]
    assert rows[0]["history_titles"] == ["Älter & älter", "<|im_end|>"]
    assert rows[0]["base_score"] > 0.5 > rows[0]["tuned_score"]


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 1), (3, 3), (10, 4)])
def test_one_kind_fills_up_where_the_other_runs_out(make, n, expected):
    assert len(disagreements(make(BASE, LABELS, USERS), make(TUNED, LABELS, USERS), n=n)) == expected
    better = make(np.where(np.array(LABELS) == 1, 3.0, -3.0), LABELS, USERS)
    rows = disagreements(make(BASE, LABELS, USERS), better, n=3)
    assert [row["outcome"] for row in rows] == ["improvement"] * 3


def test_the_folder_holds_every_file_and_the_report_counts_their_lines(make, tmp_path):
    report = write_comparison(make(BASE, LABELS, USERS), make(TUNED, LABELS, USERS), tmp_path / "c", bootstrap_draws=20)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "base_predictions.jsonl",
        "both_wrong.jsonl",
        "comparison_report.json",
        "lora_improvements.jsonl",
        "lora_predictions.jsonl",
        "lora_regressions.jsonl",
    ]
    assert json.loads((tmp_path / "c/comparison_report.json").read_text()) == report
    for name in ("lora_improvements", "lora_regressions", "both_wrong"):
        lines = (tmp_path / f"c/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == report["counts"][name]
        assert json.loads(lines[0])["history_titles"] == ["Älter & älter", "<|im_end|>"]
    assert len((tmp_path / "c/base_predictions.jsonl").read_text().splitlines()) == 6
    assert report["tuned_minus_base"]["accuracy"]["difference"] == pytest.approx(
        report["tuned"]["metrics"]["accuracy"] - report["base"]["metrics"]["accuracy"]
    )


def test_files_that_were_there_stay_and_an_error_changes_nothing(make, tmp_path, monkeypatch):
    base, tuned = make(BASE, LABELS, USERS), make(TUNED, LABELS, USERS)
    (tmp_path / "adapter.safetensors").write_text("mine")
    write_comparison(base, tuned, tmp_path, bootstrap_draws=5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_args):
        raise OSError(5, "input/output error")

    monkeypatch.setattr(pl.DataFrame, "write_ndjson", fail)
    with pytest.raises(OSError, match="input/output"):
        write_comparison(tuned, base, tmp_path, bootstrap_draws=5)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert before["adapter.safetensors"] == b"mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.reverse(), "predictions of tuned: row_id of row 1 is 5, but base has 0"),
        (lambda frame: frame.head(5), "5 rows, but base has 6"),
        (lambda frame: frame.drop("score"), "no column 'score'"),
        (lambda frame: frame.clear(), "no rows"),
        (lambda frame: frame.with_columns(label=pl.lit(2)), "other values than 0 and 1"),
        (lambda frame: frame.with_columns(label=1 - pl.col("label")), "label of row 1 is 0, but base has 1"),
        (lambda frame: frame.with_columns(log_odds=pl.lit(float("nan"))), "6 of 6 log_odds are not finite"),
        (lambda frame: frame.with_columns(row_id=pl.lit(1)), "more than once"),
    ],
)
def test_frames_that_do_not_match_are_refused_with_the_first_difference(make, change, message):
    base, tuned = make(BASE, LABELS, USERS), make(TUNED, LABELS, USERS)
    with pytest.raises(DataError, match=message):
        split_by_outcome(base, change(tuned))


def test_no_predictions_at_all_is_an_error():
    with pytest.raises(DataError, match="no model given"):
        check_same_rows({})
