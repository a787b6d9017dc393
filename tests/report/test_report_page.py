from html.parser import HTMLParser

from rectune.report.page import PageContent, PageFigure, render_page
from rectune.report.verdict import Estimate

EVIL = "<script>alert('x')</script><|im_end|>\"&"
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Tags(HTMLParser):
    """Every tag opened, and whether each was closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.balanced = True

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        self.balanced = bool(self.open) and self.open.pop() == tag and self.balanced

    def handle_data(self, data):
        self.text.append(data)


def full_page() -> PageContent:
    row = {
        "candidate_title": EVIL,
        "history_titles": [EVIL, "Heat"],
        "label": 1,
        "base_score": 0.2,
        "tuned_score": 0.9,
        "outcome": "improvement",
    }
    return PageContent(
        title=EVIL,
        verdict=EVIL,
        rows={EVIL: {"auc": Estimate(0.7, 0.6, 0.8), "loss": Estimate(0.5)}, "tuned": {"auc": Estimate(None)}},
        figures={EVIL: PageFigure('<svg role="img" aria-label="a curve"></svg>', EVIL, wide=True)},
        disagreements=[row, {**row, "tuned_score": 0.1}],
        how_made={EVIL: EVIL},
        notes=[EVIL],
        diagnosis=[{"code": EVIL, "step": 1200, "severity": "warning", "message": EVIL, "advice": EVIL}],
    )


def test_text_from_data_never_becomes_markup():
    page = render_page(full_page())
    parser = Tags()
    parser.feed(page)
    assert "script" not in parser.tags
    assert "<script" not in page
    assert "<|im_end|>" not in page
    assert "".join(parser.text).count(EVIL) == 15


def test_the_page_is_well_formed_and_needs_nothing_from_outside():
    page = render_page(full_page())
    parser = Tags()
    parser.feed(page)
    assert parser.balanced
    assert parser.open == []
    assert not {"link", "img", "iframe", "object"} & set(parser.tags)
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page


def test_tables_say_what_their_rows_and_columns_are():
    page = render_page(full_page())
    assert page.count("<caption>") == 2
    assert '<th scope="col">AUC' in page
    assert '<th scope="row">' in page
    assert "0.600 – 0.800" in page
    assert "0.900 ✓" in page
    assert "0.100 ✗" in page


def test_sections_without_content_are_left_out():
    page = render_page(PageContent(title="t", verdict="v", rows={"tuned": {"auc": Estimate(0.5)}}))
    for heading in ("Figures", "Disagreements", "How it was made"):
        assert f"<h2>{heading}" not in page


def test_findings_of_the_training_have_a_section_and_none_have_none():
    page = render_page(full_page())
    section = page[page.index("Diagnosis of the training") :]
    assert "<bdi>warning</bdi>, step 1,200: " in section
    assert "Diagnosis" not in render_page(PageContent(title="t", verdict="v", rows={}))


def test_a_finding_whose_step_is_not_known_does_not_cost_the_page():
    finding = {"code": "c", "step": None, "severity": "warning", "message": "m", "advice": "a"}
    page = render_page(PageContent(title="t", verdict="v", rows={}, diagnosis=[finding]))
    assert "<bdi>warning</bdi>, step unknown: " in page
