import json
import math

import numpy as np
import polars as pl
import pytest

from rectune.errors import DataError
from rectune.measure.classification import classification_metrics, log_loss
from rectune.measure.slices import cut_by_edges
from rectune.report.report import Calibration, best_baseline, both_protocols, estimates, write_report

LOG = [{"step": 10, "loss": 0.7}, {"step": 10, "eval_loss": 0.6, "eval_auc": 0.7}]
HOW = {"config": "history_len: 15", "command": "rectune run config.yaml"}


def test_metrics_json_holds_what_is_returned_and_the_page_its_verdict(models, tmp_path):
    report = write_report(tmp_path / "run", models, LOG, HOW, bootstrap_draws=200)
    assert json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8")) == report
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert report["verdict"] in page
    assert page.count("<svg") == 6
    assert "history_len: 15" in page
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.json", "report.html"]


def test_the_reports_metrics_are_those_of_the_metrics_room(models, tmp_path):
    report = write_report(tmp_path, models, [], {}, threshold=0.4, bootstrap_draws=20)
    for name, frame in models.items():
        assert report["models"][name]["metrics"] == classification_metrics(
            frame["label"].to_numpy(), frame["log_odds"].to_numpy(), frame["user_id"].to_list(), 0.4
        )
    assert report["rows"] == 600
    assert report["users"] == 40
    assert sum(report["counts"].values()) == 600
    assert set(report["paired_differences"]) == {"tuned - untuned", "tuned - item like-rate"}


def test_the_verdict_compares_with_the_untuned_model_and_the_best_baseline(models, tmp_path):
    report = write_report(tmp_path, models, LOG, HOW, bootstrap_draws=200)
    assert report["verdict"].startswith("The tuned model beats the untuned one by ")
    assert "It beats the item like-rate baseline by " in report["verdict"]
    assert "UAUC" in report["notes"][0]
    assert best_baseline({**report, "models": {"tuned": report["models"]["tuned"]}}) is None


def test_a_tuned_model_that_learned_nothing_does_not_win(models, tmp_path):
    swapped = {"untuned": models["tuned"], "tuned": models["untuned"]}
    report = write_report(tmp_path, swapped, [], {}, bootstrap_draws=200)
    assert report["verdict"].startswith("The tuned model does not beat the untuned one: it is worse by ")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["tuned"], "nothing to compare it with"),
        (["untuned"], "No tuned model"),
        (["item like-rate"], "No tuned model"),
        (["tuned", "item like-rate"], "The tuned model beats the item like-rate baseline"),
        (["untuned", "item like-rate"], "No tuned model"),
    ],
)
def test_any_subset_of_models_makes_a_report(models, tmp_path, names, words):
    chosen = {name: models[name] for name in names}
    report = write_report(tmp_path, chosen, [], {}, bootstrap_draws=50, out_name="some")
    assert words in report["verdict"]
    assert list(estimates(report)) == names
    assert report["counts"] is None
    assert (tmp_path / "some.html").is_file()


def test_the_same_input_gives_the_same_bytes(models, tmp_path):
    for run in ("one", "two"):
        write_report(tmp_path / run, models, LOG, HOW, bootstrap_draws=30)
    for name in ("metrics.json", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_rows_in_another_order_are_refused_and_nothing_is_written(models, tmp_path):
    models["tuned"] = models["tuned"].reverse()
    with pytest.raises(DataError, match="predictions of tuned: row_id of row 1"):
        write_report(tmp_path / "run", models, [], {})
    assert not (tmp_path / "run").exists()


def test_a_tiny_run_of_one_user_and_one_class_still_makes_a_page(make, tmp_path):
    frames = {name: make([0.5, 1.0], [1, 1], ["a", "a"]) for name in ("untuned", "tuned")}
    report = write_report(tmp_path, frames, [], {}, bootstrap_draws=10)
    assert "cannot be compared" in report["verdict"]
    assert report["models"]["tuned"]["intervals"] == {}


def test_a_validation_report_leaves_the_tests_figures_as_they_were(models, tmp_path):
    write_report(tmp_path, models, LOG, HOW, bootstrap_draws=20)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    report = write_report(tmp_path, models, LOG, HOW, 0.4, bootstrap_draws=20, out_name="report_validation")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert json.loads((tmp_path / "metrics_validation.json").read_text(encoding="utf-8")) == report


def test_generated_answers_are_measured_by_what_they_say(make, tmp_path):
    frame = make([2.0, 2.0, -2.0, -2.0], [1, 1, 0, 0], list("aabb"))
    answered = frame.with_columns(generated_label=pl.Series([1, None, 1, 0], dtype=pl.Int64))
    report = write_report(tmp_path, {"untuned": frame, "tuned": answered}, [], {}, bootstrap_draws=5)
    assert "generated" not in report["models"]["untuned"]
    assert report["models"]["tuned"]["metrics"]["accuracy"] == 1.0
    assert report["models"]["tuned"]["generated"] == {
        "accuracy": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "without_label": 0.25,
    }


def test_frozen_histories_have_a_table_of_their_own_and_the_last_word_on_uauc(models, tmp_path):
    # With histories frozen the baseline knows everything and the tuned model nothing.
    frozen = {"untuned": models["untuned"], "tuned": models["untuned"], "item like-rate": models["tuned"]}
    report = write_report(tmp_path, models, [], {}, bootstrap_draws=200, frozen=frozen)
    of_baseline = report["frozen"]["models"]["item like-rate"]
    assert of_baseline["metrics"] == report["models"]["tuned"]["metrics"]
    assert set(report["frozen"]["paired_differences"]) == set(report["paired_differences"])
    assert report["verdict"].startswith("The tuned model beats the untuned one by ")
    assert "It does not beat the item like-rate baseline: it is worse by " in report["notes"][0]
    assert "history frozen at the split" in report["notes"][0]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Metrics, each user&#x27;s history frozen at the split</h2>" in page
    rows = both_protocols(report)
    assert rows["tuned"]["auc"].value == report["models"]["tuned"]["metrics"]["auc"]
    assert rows["tuned"]["frozen_uauc"].value == report["models"]["untuned"]["metrics"]["uauc"]


def test_frozen_predictions_of_other_rows_are_refused(models, tmp_path):
    frozen = {name: table.reverse() for name, table in models.items()}
    with pytest.raises(DataError, match="predictions of untuned, frozen: row_id of row 1"):
        write_report(tmp_path / "run", models, [], {}, frozen=frozen)


def test_calibration_is_told_before_and_after(make, tmp_path):
    # log-odds were halved and one was added: before that they were 2 and -2.
    table = make([2.0, 0.0], [1, 0], ["a", "b"])
    found = write_report(tmp_path, {"tuned": table}, [], {}, bootstrap_draws=5, calibration=Calibration(2.0, 1.0))[
        "calibration"
    ]
    assert (found["temperature"], found["offset"]) == (2.0, 1.0)
    assert found["before"]["loss"] == pytest.approx(math.log1p(math.exp(-2)))
    assert found["after"]["loss"] == pytest.approx((math.log1p(math.exp(-2)) + math.log(2)) / 2)
    assert found["after"]["ece"] == pytest.approx((1 / (1 + math.exp(2)) + 0.5) / 2)


def test_slices_compare_the_tuned_model_with_the_best_baseline(models, tmp_path):
    lengths = np.arange(600) % 3
    cut = cut_by_edges(lengths, (0, 1))
    report = write_report(tmp_path, models, [], {}, bootstrap_draws=20, cuts={"length of the history": cut})
    found = report["slices"]["length of the history"]
    assert list(found) == list(cut.order) and [part["n"] for part in found.values()] == [200] * 3
    for part in found.values():
        values = [part["models"][name]["metrics"]["auc"] for name in ("tuned", "item like-rate")]
        assert part["difference"]["auc"]["difference"] == pytest.approx(values[0] - values[1])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Slices</h2>" in page and "length of the history" in page


def test_what_a_baseline_sees_and_how_it_was_set_stands_on_the_page(models, tmp_path):
    notes = {"item like-rate": {"sees": "training events", "setting": {"strength": 5}, "tried": [1, 2]}}
    report = write_report(tmp_path, models, [], {}, bootstrap_draws=5, baselines=notes)
    assert report["baselines"] == notes
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "sees training events; strength 5, of 2 tried" in page


def test_the_disagreements_are_with_the_best_baseline(models, tmp_path):
    write_report(tmp_path, models, [], {}, bootstrap_draws=5)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "differs most from that of <bdi>item like-rate</bdi>" in page


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_blend_is_named_in_the_verdict_and_what_the_model_adds_is_told(models, tmp_path, weight):
    parts = {
        "tuned": models["tuned"].with_columns(model_log_odds=-models["tuned"]["log_odds"]),
        "untuned": models["untuned"],
        "tuned, alone": models["untuned"],
        "blend without the model": models["tuned"].with_columns(pl.col("log_odds") * 0.5),
        "item like-rate": models["item like-rate"],
    }
    blend = {"model": weight, "stack": 0.4, "network": 0.6, "offset": 0.1}
    report = write_report(tmp_path, parts, [], {}, bootstrap_draws=20, calibration=Calibration(1.0, 0.0, blend))
    assert report["verdict"].startswith("The tuned model with stack and network ")
    assert report["calibration"]["blend"] == blend
    labels, odds = models["tuned"]["label"].to_numpy(), models["tuned"]["log_odds"].to_numpy()
    assert report["calibration"]["before"]["loss"] == pytest.approx(log_loss(labels, -odds))
    silent = [note for note in report["notes"] if note.startswith("The language model has no weight")]
    assert len(silent) == (weight == 0)
    added = [note for note in report["notes"] if note.startswith("What the language model adds to its baselines")]
    # The same order of the rows: nothing is added, to AUC or within users.
    assert len(added) == 2 and all("cannot be told from zero" in note for note in added)
    assert best_baseline(report) == "item like-rate"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "blend without the model" in page and "tuned, alone" in page
