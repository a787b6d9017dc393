"""The part of a report page that is told by class, as HTML; every text from data is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_HEADINGS = {"natural": "By class, rows as they come", "balanced": "By class, as many rows of every class"}


def _text(value: object) -> str:
    return f"<bdi>{escape(str(value))}</bdi>"


def _table(part: Mapping[str, Any], classes: Sequence[str]) -> str:
    """A line a decision: precision, recall and F1 of each class, then the means over classes."""
    groups = "".join(f'<th scope="colgroup" colspan="3">{_text(name)}</th>' for name in classes)
    heads = "".join(f'<th scope="col">{key}</th>' for _ in classes for key in ("Precision", "Recall", "F1"))
    means = "".join(f'<th scope="col">{name}</th>' for name in ("Accuracy", "Macro F1", "Balanced accuracy"))
    body = []
    for line in part["decisions"]:
        cells = [line["per_class"][name][key] for name in classes for key in ("precision", "recall", "f1")]
        cells += [line[key] for key in ("accuracy", "macro_f1", "balanced_accuracy")]
        numbers = "".join(f"<td>{value:.3f}</td>" for value in cells)
        body.append(f'<tr><th scope="row">{_text(line["model"])}, {_text(line["rule"])}</th>{numbers}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Metrics by class"><table><caption>'
        f"{part['rows']:,} rows. “As it answers” is the word with the highest logit; “best F1” is from the threshold "
        "on that has the best F1 of the first class on validation. Macro F1 is the mean of the classes' F1, balanced "
        f'accuracy that of their recall.</caption><thead><tr><th></th>{groups}<th colspan="3"></th></tr><tr>'
        f'<th scope="col">Model, class by</th>{heads}{means}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _confusions(part: Mapping[str, Any], names: Sequence[str]) -> str:
    """Rows by class and prediction of every decision, to unfold."""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in names)
    found = []
    for line in part["decisions"]:
        rows = "".join(
            f'<tr><th scope="row">{_text(name)}</th>' + "".join(f"<td>{count:,}</td>" for count in counts) + "</tr>"
            for name, counts in zip(names, line["confusion"], strict=True)
        )
        found.append(
            f"<details><summary>confusion: {_text(line['model'])}, {_text(line['rule'])}</summary>"
            f'<div class="scroll"><table><caption>The true class down, the predicted one across.</caption><thead><tr>'
            f"<th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
        )
    return "".join(found)


def class_sections(found: Mapping[str, Any]) -> str:
    """The sections of what `report.classes.class_report` found; nothing where it is empty."""
    if not found:
        return ""
    names = found["classes"]
    shown = names[::-1] if len(names) == 2 else names  # of two, the positive one first
    sections = [(_HEADINGS[which], found[which]) for which in _HEADINGS]
    other = found.get("validation")
    if other:
        sections += [(f"{_HEADINGS[which]}, on validation", other[which]) for which in _HEADINGS]
    return "".join(
        f"<section><h2>{escape(heading)}</h2>{_table(part, shown)}{_confusions(part, names)}</section>\n"
        for heading, part in sections
    )
