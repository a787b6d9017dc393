import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest

from rectune.report import figures as f

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, 3000)
ODDS = {"untuned": RANDOM.normal(0, 1, 3000), "tuned": RANDOM.normal(0, 1, 3000) + LABELS, "a $x_1$ <b>": LABELS - 0.5}
USERS = [f"u{user}" for user in RANDOM.integers(0, 50, 3000)]
LOG = [
    {"step": 10, "loss": 0.7, "learning_rate": 1e-4},
    {"step": 20, "loss": 0.6},
    {"step": 20, "eval_loss": 0.65, "eval_auc": 0.6, "eval_uauc": None, "eval_f1": 0.5},
    {"step": 20, "loss": 0.5},
    {"step": 20, "train_runtime": 3.0},
]
DRAW = {
    "training": lambda: f.training_curves(LOG),
    "roc": lambda: f.roc_curves(LABELS, ODDS),
    "pr": lambda: f.pr_curves(LABELS, ODDS),
    "calibration": lambda: f.calibration_curves(LABELS, ODDS),
    "confusion": lambda: f.confusion_matrices(LABELS, ODDS),
    "user-auc": lambda: f.user_auc_histogram(USERS, LABELS, ODDS),
}


@pytest.mark.parametrize("name", DRAW)
def test_a_figure_is_one_svg_that_needs_nothing_else_and_says_what_it_shows(name):
    svg = DRAW[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert root.attrib["role"] == "img"
    assert len(root.attrib["aria-label"]) > 20
    assert {"width", "height"}.isdisjoint(root.attrib)
    assert "viewBox" in root.attrib
    assert "<metadata" not in svg
    assert not re.findall(r'(?:href|src)="(?!#)', svg)
    assert set(re.findall(r"https?://[^\"]+", svg)) == {"http://www.w3.org/2000/svg"}
    assert len(svg) < 200_000


@pytest.mark.parametrize("name", DRAW)
def test_the_same_input_gives_the_same_bytes(name):
    assert DRAW[name]() == DRAW[name]()


@pytest.mark.parametrize("name", DRAW)
def test_ink_takes_the_colour_of_the_page(name):
    svg = DRAW[name]()
    assert "currentColor" in svg
    assert f._INK not in svg
    assert not re.search(r"(?:fill|stroke): ?(?:#000000|#ffffff|black|white)", svg)


def test_ids_differ_between_figures_and_every_reference_is_met():
    drawn = [draw() for draw in DRAW.values()]
    ids = [one for svg in drawn for one in re.findall(r' id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", "".join(drawn))) <= set(ids)


def test_a_models_name_is_text_and_neither_markup_nor_a_formula():
    svg = DRAW["roc"]()
    assert "a $x_1$ &lt;b&gt;" in svg
    assert "<b>" not in svg


def test_tuned_and_untuned_keep_their_colours_whatever_stands_beside_them():
    alone, together = f.model_styles(["tuned"]), f.model_styles(["x", "untuned", "y", "tuned"])
    assert alone["tuned"] == together["tuned"]
    assert len({style["color"] for style in together.values()}) == 4


def test_a_step_logged_twice_keeps_its_last_value_and_missing_values_are_skipped():
    assert f._values(LOG, "loss") == ([10.0, 20.0], [0.7, 0.5])
    assert f._values(LOG, "eval_uauc") == ([], [])


def test_training_curves_have_a_panel_each_for_what_was_logged():
    svg = f.training_curves(LOG)
    for title in ("loss", "validation", "learning rate"):
        assert f">{title}</text>" in svg
    assert "by class" not in svg and svg.count(">step</text>") == 3
    by_class = {"step": 20, "eval_loss_positive": 0.4, "eval_loss_negative": 0.9}
    svg = f.training_curves([*LOG, by_class])
    assert ">validation loss by class</text>" in svg and ">not liked</text>" in svg
    assert svg.count(">step</text>") == 4 and "last liked 0.400, last not liked 0.900" in svg


def test_figures_without_meaning_are_left_out():
    ones = np.ones(4, dtype=int)
    assert f.training_curves([]) is None
    assert f.roc_curves(ones, {"tuned": np.arange(4.0)}) is None
    assert f.pr_curves(ones, {"tuned": np.arange(4.0)}) is None
    assert f.user_auc_histogram(list("abcd"), ones, {"tuned": np.arange(4.0)}) is None


def test_a_thinned_curve_keeps_its_ends_and_stays_close():
    x = np.linspace(0, 1, 50_000)
    thin_x, thin_y = f._thin(x, np.sqrt(x))
    assert len(thin_x) <= f._POINTS + 2
    assert (thin_x[0], thin_x[-1]) == (0, 1)
    assert np.abs(np.interp(x, thin_x, thin_y) - np.sqrt(x)).max() < 0.005


def test_drawing_leaves_matplotlibs_settings_as_they_were():
    before = dict(matplotlib.rcParams)
    DRAW["roc"]()
    assert dict(matplotlib.rcParams) == before
