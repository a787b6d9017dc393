import io

import pytest
from rich.console import Console

from rectune.measure.bootstrap import Difference
from rectune.report.verdict import Estimate, comparison_sentence, summary_table, verdict


def test_a_clear_win_is_said_with_its_interval():
    assert comparison_sentence(Difference(0.12, 0.08, 0.16, 0.002), "the untuned one") == (
        "The tuned model beats the untuned one by 0.120 AUC (95 % interval 0.080 to 0.160)."
    )


@pytest.mark.parametrize(("low", "high"), [(-0.01, 0.03), (0.0, 0.03), (-0.03, 0.0), (0.0, 0.0)])
def test_an_interval_that_holds_zero_is_no_win(low, high):
    text = comparison_sentence(Difference((low + high) / 2, low, high, 0.4), "the untuned one")
    assert "does not beat" in text
    assert "cannot be told from zero" in text
    assert "−0.000" not in text


def test_a_loss_is_called_worse():
    text = comparison_sentence(Difference(-0.05, -0.08, -0.02, 0.002), "LightGBM", "uauc", level=0.9)
    assert text == ("The tuned model does not beat LightGBM: it is worse by 0.050 UAUC (90 % interval 0.020 to 0.080).")


def test_a_narrow_win_does_not_read_as_touching_zero():
    text = comparison_sentence(Difference(0.0006, 0.00004, 0.0012, 0.04), "LightGBM")
    assert "0.00004 to 0.00120" in text


def test_what_was_not_measured_is_not_claimed():
    assert "cannot be compared with the untuned one" in verdict(None, None)
    assert verdict(None, None, has_untuned=False) == "One model was measured, and nothing to compare it with."


def test_the_verdict_names_the_baseline_too():
    win, draw = Difference(0.12, 0.08, 0.16, 0.002), Difference(0.0, -0.1, 0.1, 1.0)
    text = verdict(win, ("LightGBM", draw))
    assert text.startswith("The tuned model beats the untuned one by 0.120 AUC")
    assert "It does not beat the LightGBM baseline" in text
    assert verdict(None, ("LightGBM", win), has_untuned=False).startswith("The tuned model beats the LightGBM baseline")


def test_the_terminal_table_fits_eighty_columns_and_prints_names_as_they_are():
    rows = {
        "tuned [bold]": {"auc": Estimate(0.7561, 0.723, 0.793), "uauc": Estimate(None), "f1": Estimate(0.5)},
        "item like-rate": {"auc": Estimate(0.6, 0.5, 0.7)},
    }
    stream = io.StringIO()
    Console(file=stream, width=80).print(summary_table(rows))
    text = stream.getvalue()
    assert "tuned [bold]" in text
    assert "0.756" in text
    assert "[0.723, 0.793]" in text
    assert "–" in text
    assert "…" not in text
