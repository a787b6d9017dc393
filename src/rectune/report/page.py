"""The report as one HTML file: no script, no external resource, every text from data escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

from rectune.measure.classification import LOWER_IS_BETTER
from rectune.report.class_page import class_sections
from rectune.report.verdict import METRIC_NAMES, Rows, percent


class PageFigure(NamedTuple):
    """An SVG made by `report.figures`, the sentence under it, and whether it takes a row of its own, or two."""

    svg: str
    caption: str
    wide: bool = False
    tall: bool = False


@dataclass(frozen=True)
class PageContent:
    """All that a page shows. Texts are plain text; only `figures` hold markup, made by this program.

    Attributes:
        title: heading of the page.
        verdict: what the numbers say, in a sentence or two.
        rows: model name → metric key → Estimate(value, low, high).
        figures: heading → figure.
        frozen: as `rows`, each user's history frozen at the split.
        shown: the models of both tables that are seen at once; the others can be unfolded. None shows all.
        slices: kind → slice → what `measure_slices` found.
        disagreements: as from `report.compare.disagreements`.
        rival: the model that the tuned one disagrees with there.
        how_made: what → how, in order: config, data hash, versions, command, rows, settings.
        diagnosis: what was found wrong with the training, as `logs/diagnosis.json` has it.
        notes: sentences under the verdict.
        level: of the intervals in `rows`.
        by_class: of texts, what `report.classes.class_report` found; `rows` are then of texts, not of users' events.
    """

    title: str
    verdict: str
    rows: Rows
    figures: Mapping[str, PageFigure] = field(default_factory=dict)
    frozen: Rows = field(default_factory=dict)
    shown: Sequence[str] | None = None
    slices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    disagreements: Sequence[Mapping[str, Any]] = ()
    rival: str = "untuned"
    how_made: Mapping[str, str] = field(default_factory=dict)
    diagnosis: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    level: float = 0.95
    by_class: Mapping[str, Any] = field(default_factory=dict)


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5c6670; --page: #ffffff; --card: #f5f7f9; --line: #d9dfe5;
  --accent: #2f7fd8; --good: #17795a; --bad: #b3462c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #9aa5b0; --page: #14181c; --card: #1c2228;
  --line: #333c45; --accent: #5aa0ee; --good: #4cc39a; --bad: #ee8a6c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
.verdict { font-size: 1.15rem; padding: 1rem 1.25rem; border-left: 4px solid var(--accent); background: var(--card);
  border-radius: 0 8px 8px 0; margin: 0; }
.notes { color: var(--soft); margin: .75rem 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: .85rem; padding-top: .5rem; }
th, td { padding: .5rem .75rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td.text { text-align: left; }
thead th { color: var(--soft); font-weight: 600; font-size: .85rem; white-space: nowrap; }
tbody th.kind { color: var(--soft); font-weight: 400; padding-top: 1rem; }
tbody th { font-weight: 600; min-width: 6rem; overflow-wrap: break-word; }
.interval { display: block; color: var(--soft); font-size: .8rem; white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1.25rem;
  align-items: start; }
figure { margin: 0; padding: 1rem; background: var(--card); border-radius: 8px; min-width: 0; overflow-x: auto; }
figure h3 { font-size: .95rem; margin: 0 0 .5rem; }
figure svg { display: block; width: 100%; height: auto; max-height: 26rem; }
figure.wide { grid-column: 1 / -1; } figure.wide svg { min-width: 32rem; max-height: 22rem; }
figure.tall svg { max-height: 44rem; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .5rem; }
.better { color: var(--good); } .worse { color: var(--bad); }
details summary { cursor: pointer; color: var(--soft); font-size: .85rem; }
details ol { margin: .25rem 0 0; padding-left: 1.5rem; font-size: .85rem; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .35rem 1.25rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; white-space: pre-wrap;
  font-family: ui-monospace, SFMono-Regular, Menlo, monospace; font-size: .85rem; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print { figure, tr { break-inside: avoid; } }
"""


def _text(value: object) -> str:
    """Text from data: escaped, and kept from turning the direction of the text around it."""
    return f"<bdi>{escape(str(value))}</bdi>"


def _table(rows: Rows, level: float) -> str:
    metrics = [metric for metric in METRIC_NAMES if any(metric in values for values in rows.values())]
    head = "".join(
        f'<th scope="col">{METRIC_NAMES[metric]} {"↓" if metric in LOWER_IS_BETTER else ""}</th>' for metric in metrics
    )
    body = []
    for name, values in rows.items():
        cells = []
        for metric in metrics:
            estimate = values.get(metric)
            if estimate is None or estimate[0] is None:
                cells.append("<td>–</td>")
                continue
            value, low, high = estimate
            interval = f'<span class="interval">{low:.3f} – {high:.3f}</span>' if None not in (low, high) else ""
            cells.append(f"<td>{value:.3f}{interval}</td>")
        body.append(f'<tr><th scope="row">{_text(name)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Metrics by model"><table><caption>'
        f"Below each value: its {percent(level)} interval, by bootstrap over users. "
        f"UAUC is the mean of the AUCs within each user. "
        f'↓ lower is better.</caption><thead><tr><th scope="col">Model</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _tables(rows: Rows, shown: Sequence[str] | None, level: float) -> str:
    """The table of the models shown, and one of the others to unfold."""
    first = {name: row for name, row in rows.items() if shown is None or name in shown}
    rest = {name: row for name, row in rows.items() if name not in first}
    more = f"<details><summary>{len(rest)} more models</summary>{_table(rest, level)}</details>" if rest else ""
    return _table(first or rest, level) + (more if first else "")


def _slices(slices: Mapping[str, Mapping[str, Any]]) -> str:
    """One table: a line a slice, every model's AUC in it, and the difference between the two that are compared."""
    body, models = [], []
    for kind, found in slices.items():
        body.append(f'<tr><th scope="rowgroup" colspan="99" class="kind">{_text(kind)}</th></tr>')
        for name, part in found.items():
            models = list(part["models"])
            values = (part["models"][model]["metrics"]["auc"] for model in models)
            cells = "".join("<td>–</td>" if value is None else f"<td>{value:.3f}</td>" for value in values)
            gap = (part["difference"] or {}).get("auc")
            between = "–"
            if gap is not None:
                span = f'<span class="interval">{gap["low"]:+.3f} – {gap["high"]:+.3f}</span>'
                between = f"{gap['difference']:+.3f}{span}"
            body.append(f'<tr><th scope="row">{_text(name)}</th><td>{part["n"]:,}</td>{cells}<td>{between}</td></tr>')
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in models)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Slices"><table><caption>AUC, online, in parts of '
        "the rows; the last column is the tuned model minus the best baseline, with its interval.</caption><thead><tr>"
        f'<th scope="col">Slice</th><th scope="col">Rows</th>{head}<th scope="col">Difference</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _names(content: PageContent) -> Sequence[str]:
    """What the two labels are called."""
    return content.by_class["classes"] if content.by_class else ("not liked", "liked")


def _disagreements(rows: Sequence[Mapping[str, Any]], rival: str, names: Sequence[str]) -> str:
    body = []
    for row in rows:
        titles = list(row.get("history_titles") or [])
        lines = "".join(f"<li>{_text(title)}</li>" for title in titles)
        history = f"<details><summary>history ({len(titles)})</summary><ol>{lines}</ol></details>" if titles else ""
        label = int(row["label"])
        right = (float(row["tuned_score"]) > float(row["base_score"])) == (label == 1)
        body.append(
            f'<tr><td class="text">{_text(row["candidate_title"])}{history}</td>'
            f"<td>{_text(names[label])}</td><td>{float(row['base_score']):.3f}</td>"
            f'<td class="{"better" if right else "worse"}">{float(row["tuned_score"]):.3f} {"✓" if right else "✗"}</td>'
            "</tr>"
        )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Disagreements"><table><caption>'
        f"Rows on which the tuned model's answer differs most from that of {_text(rival)}. "
        "Scores are P(yes); ✓ nearer to the truth, ✗ further away.</caption><thead><tr>"
        f'<th scope="col">Item asked about</th><th scope="col">Truth</th><th scope="col">{_text(rival)}</th>'
        f'<th scope="col">Tuned</th></tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _number(value: object) -> str:
    return f"{int(value):,}" if isinstance(value, int | float) else "unknown"


def _diagnosis(findings: Sequence[Mapping[str, Any]]) -> str:
    """A list: step and severity of each finding, what was seen, what to change."""
    items = "".join(
        f"<li>{_text(each['severity'])}, step {_number(each['step'])}: {_text(each['message'])}. "
        f"<em>{_text(each['advice'])}</em></li>"
        for each in findings
    )
    return f"<ul>{items}</ul>"


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>\n" if body else ""


def _classes(figure: PageFigure) -> str:
    """The attribute that gives a figure its room."""
    names = [name for name in ("wide", "tall") if getattr(figure, name)]
    return f' class="{" ".join(names)}"' if names else ""


def metrics_name(out_name: str) -> str:
    """The file of figures beside a page, so that one split's report never overwrites another's.

    >>> metrics_name("report"), metrics_name("report_validation"), metrics_name("some")
    ('metrics.json', 'metrics_validation.json', 'metrics_some.json')
    """
    rest = out_name.removeprefix("report").removeprefix("_")
    return f"metrics_{rest}.json" if rest else "metrics.json"


def render_page(content: PageContent) -> str:
    """The page as one HTML document, without script or external resource; readable in light and dark, wide and narrow.

    Every text in `content` is escaped; the SVGs of `content.figures` are put in as they are.
    """
    figures = "".join(
        f"<figure{_classes(figure)}><h3>{escape(name)}</h3>{figure.svg}"
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
        for name, figure in content.figures.items()
    )
    how = "".join(f"<dt>{escape(key)}</dt><dd>{_text(value)}</dd>" for key, value in content.how_made.items())
    notes = "".join(f'<p class="notes">{escape(note)}</p>' for note in content.notes)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(content.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(content.title)}</h1>\n<p class="verdict">{escape(content.verdict)}</p>\n{notes}\n'
        + class_sections(content.by_class)
        + _section(
            "Metrics of the probabilities" if content.by_class else "Metrics, each event given everything before it",
            _tables(content.rows, content.shown, content.level),
        )
        + _section(
            "Metrics, each user's history frozen at the split",
            _tables(content.frozen, content.shown, content.level) if content.frozen else "",
        )
        + _section("Figures", f'<div class="figures">{figures}</div>' if figures else "")
        + _section("Diagnosis of the training", _diagnosis(content.diagnosis) if content.diagnosis else "")
        + _section("Slices", _slices(content.slices) if content.slices else "")
        + _section(
            "Disagreements",
            _disagreements(content.disagreements, content.rival, _names(content)) if content.disagreements else "",
        )
        + _section("How it was made", f"<dl>{how}</dl>" if how else "")
        + "</main>\n</body>\n</html>\n"
    )
