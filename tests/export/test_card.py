"""The model card tells what was measured, where it was, and what is known of licence and data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from tiny_runs import silent, write_run

from rectune.errors import DataError
from rectune.export.card import license_of
from rectune.export.export import export
from rectune.measure.classification import probability
from rectune.report.report import write_report


def predictions(odds: np.ndarray, labels: np.ndarray) -> pl.DataFrame:
    count = len(odds)
    return pl.DataFrame(
        {
            "row_id": range(count),
            "user_id": [f"u{row % 9}" for row in range(count)],
            "item_id": [f"i{row}" for row in range(count)],
            "label": labels,
            "log_odds": odds,
            "score": probability(odds),
            "candidate_title": ["Film"] * count,
            "history_titles": [["Film"]] * count,
        },
        schema_overrides={"label": pl.Int8},
    )


def test_it_shows_the_runs_metrics_with_intervals_and_baselines(stream_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stream_run, run)
    draw = np.random.default_rng(0)
    truth = draw.normal(size=120)
    labels = (draw.uniform(size=120) < probability(truth)).astype(int)
    tables = {"tuned": predictions(truth, labels), "item like-rate": predictions(draw.normal(size=120), labels)}
    report = write_report(run, tables, [], {}, 0.5, 200, frozen=tables)
    card = (export(run, [], "adapter", tmp_path / "out", silent) / "README.md").read_text(encoding="utf-8")
    found = report["models"]["tuned"]
    low, high = found["intervals"]["auc"]
    assert f"| tuned | {found['metrics']['auc']:.3f} [{low:.3f}, {high:.3f}] |" in card
    low, high = report["frozen"]["models"]["tuned"]["intervals"]["uauc"]
    assert f"{report['frozen']['models']['tuned']['metrics']['uauc']:.3f} [{low:.3f}, {high:.3f}] |" in card
    assert "| item like-rate | " in card and report["verdict"] in card and "120 held-out events of 9 users" in card
    # Of another adapter, or of other weights of the baselines: no figure of it is this export's.
    for what in ("adapter hash", "calibration"):
        (run / "metrics.json").write_text(json.dumps({**report, "how_made": {what: "another"}}), encoding="utf-8")
        card = (export(run, [], "adapter", tmp_path / "out", silent) / "README.md").read_text(encoding="utf-8")
        assert f"its report is of another {what}" in card and f"{found['metrics']['auc']:.3f}" not in card
    (run / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics.json: damaged .*; make it again with `rectune evaluate"):
        export(run, [], "adapter", tmp_path / "other", silent)


def test_it_says_where_nothing_was_measured_and_names_no_folder_of_this_machine(
    stream_run: Path, tmp_path: Path
) -> None:
    folder = export(stream_run, [], "merged", tmp_path / "out", silent)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "exported before it was evaluated (`rectune evaluate run` measures it)" in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers" and "base_model" not in front  # a folder is no name on a hub
    for file in (*folder.glob("*.json"), folder / "README.md"):
        assert str(stream_run.parents[1]) not in file.read_text(encoding="utf-8"), file


def test_the_licence_is_that_of_the_base_models_own_card(tmp_path: Path) -> None:
    assert license_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\nlicense: none\n", encoding="utf-8")
    assert license_of(str(tmp_path)) == "apache-2.0"
    for text in ("no front matter\nlicense: mit", "---\n: [\n---\n", "---\ntags: [x]\n---\n"):
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        assert license_of(str(tmp_path)) is None


def test_a_classifier_of_texts_is_called_one(tmp_path: Path, tiny_qwen3: Path) -> None:
    texts = tmp_path / "posts.csv"
    rows = [f"{number},may I turn {number} rules,{'Rules' if number % 3 else 'Other'}" for number in range(60)]
    rows[7] = f"7,{'word ' * 400},Other"  # cut in its middle
    texts.write_text(
        "\n".join(["id,text,kind", *(row.replace("Rules, asked", "Rules") for row in rows)]), encoding="utf-8"
    )
    run = write_run(
        tmp_path, tiny_qwen3, texts, task="classify", layout="pointwise", label_column="kind", text_column="text",
        labels={"Rules": "R", "Other": "O"}, rubric="Does the text ask about rules?", cutoff_len=200,
        history_len=0, test_ratio=0.5, validation_ratio=0.2,
    )  # fmt: skip
    lines: list[str] = []
    card = (export(run, [], "merged", tmp_path / "out", lines.append) / "README.md").read_text(encoding="utf-8")
    assert any(line.startswith("check: merged") for line in lines)
    assert "# Rules or Other? (posts)" in card and "that a text is `Rules` (answered `R`)" in card
    assert "this user" not in card and "Does the text ask about rules?" in card
