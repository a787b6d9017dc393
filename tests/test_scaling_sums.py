"""The sums behind docs/scaling.md, against the page and against sums by hand."""

from __future__ import annotations

from typing import Any

import pytest

from documents import REPO


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    import scaling_sums

    return scaling_sums


def test_the_page_has_the_tables_that_the_script_makes(sums: Any) -> None:
    page = (REPO / "docs" / "scaling.md").read_text(encoding="utf-8")
    found = sums.tables(sums.arguments().parse_args([]))
    assert all(f"<!-- {name} -->" in page for name in found)
    assert sums.filled(page, found) == page


def test_a_token_passes_every_linear_layer_once_and_every_layer_looks_at_what_it_sees(sums: Any) -> None:
    shape = sums.shape_of("smollm2-135m")
    block = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    assert sums.forward_flops(shape, 1, 0) == 2 * 30 * block
    assert sums.forward_flops(shape, 1, 10) - sums.forward_flops(shape, 1, 0) == 30 * 4 * 576 * 10


def test_a_kept_history_saves_its_tokens_and_nothing_else(sums: Any) -> None:
    shape = sums.shape_of("qwen3-0.6b")
    whole, after = (sums.request_flops(shape, 141, 5.5, 100, kept) for kept in (False, True))
    assert whole - after == pytest.approx(sums.forward_flops(shape, 141, 70.5))
    assert after == pytest.approx(100 * sums.request_flops(shape, 141, 5.5, 1, kept=True))


def test_costs_of_an_event_are_those_of_the_measured_run(sums: Any) -> None:
    costs = sums.Costs.of_files()
    assert 1 / costs.prepare == pytest.approx(338_269, rel=1e-3)
    assert 1 / costs.encode == pytest.approx(241_889, rel=1e-3)
    assert (round(costs.labels, 3), round(costs.tokens, 1), round(costs.window)) == (0.774, 19.9, 914)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0.2 s"), (80, "80 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2.31 days")]
)
def test_times_are_said_in_the_unit_that_a_person_would_use(sums: Any, seconds: float, said: str) -> None:
    assert sums.time(seconds) == said
