"""What the page shows, and that it needs nobody else."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from served import KEY, Here

from rectune.score.recommender import Recommender
from rectune.serve.explain import Mark, Reason, Row, ranking, rating_of, reasons, search
from rectune.serve.page import marks_table, ranking_table, reasons_table

MARKS = [Mark("1", True), Mark("273", False), Mark("100", True)]
HISTORY = [({"item_id": mark.item_id}, mark.liked) for mark in MARKS]


def test_the_ranking_is_of_popular_items_not_yet_marked_and_of_those_wanted(here: Here, alone: Recommender) -> None:
    rows = asyncio.run(ranking(here.service, MARKS, ["183", "1"], 6))
    popular = alone.fit_retriever("popularity").top("", 5, ["1", "273", "100", "183"]).items
    assert {row.item_id for row in rows} == {"183", *popular}
    items = [{"item_id": row.item_id} for row in rows]
    assert np.allclose([row.tuned for row in rows], alone.score(HISTORY, items), atol=1e-5)
    with alone.run.model.disable_adapter():
        untuned = alone.score(HISTORY, items)
    assert np.allclose([row.untuned for row in rows], untuned, atol=1e-5)
    assert not np.allclose([row.untuned for row in rows], [row.tuned for row in rows], atol=1e-3)
    assert [row.tuned for row in rows] == sorted((row.tuned for row in rows), reverse=True)


def test_a_reason_is_what_the_score_loses_without_the_event(here: Here, alone: Recommender) -> None:
    score, found, prompt = asyncio.run(reasons(here.service, MARKS, "183"))
    (whole,) = alone.score(HISTORY, [183])
    assert score == pytest.approx(whole, abs=1e-5)
    without = [alone.score([*HISTORY[:at], *HISTORY[at + 1 :]], [183])[0] for at in range(3)]
    titles = ["Toy Story (1995)", "Heat (1995)", "Fargo (1996)"]
    expected = {title: whole - left for title, left in zip(titles, without, strict=True)}
    assert {reason.title: pytest.approx(reason.change, abs=1e-5) for reason in found} == expected
    changes = [abs(reason.change) for reason in found]
    assert changes == sorted(changes, reverse=True) and [reason.liked for reason in found].count(False) == 1
    request = alone.ask(HISTORY, [183]).request
    assert prompt == alone.run.prompts.text(request.history, request.candidates[0].text)


def test_nobody_has_no_reasons(here: Here) -> None:
    score, found, _ = asyncio.run(reasons(here.service, [], "183"))
    assert found == [] and 0 < score < 1
    assert "no history" in reasons_table(score, found)


def test_a_search_finds_what_is_meant_first(here: Here) -> None:
    serving = here.service.serving
    assert search(serving, "toy stori", 5)[0] == ("Toy Story (1995)", "1")
    assert [item for _, item in search(serving, "body snatchers", 5)][:2] == ["573", "670"]
    assert search(serving, "  ", 5) == [] and len(search(serving, "film", 5)) == 5


def test_titles_are_shown_as_they_are_and_never_as_html() -> None:
    evil = "<script>alert(1)</script> & co"
    tables = [ranking_table([Row("1", evil, 0.5, 0.25)], ["1"]), reasons_table(0.5, [Reason(evil, True, 0.1)])]
    for table in tables:
        assert "<script" not in table and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in table
    assert "50.0 %" in tables[0] and 'class="mine"' in tables[0] and "+10.00" in tables[1]


def test_marks_are_ratings_in_a_run_that_shows_them(
    serve_here: Callable[..., Here], make_run: Callable[..., Path], here: Here
) -> None:
    values = {"layout": "pointwise", "prompt_format": "chat", "history_shows": "rating", "cutoff_len": 1024,
              "prior": "none", "item_rate_text": False}  # fmt: skip
    shown = serve_here(make_run("pointwise", seed=6, **values))
    serving = shown.service.serving
    assert (rating_of(serving, True), rating_of(serving, False)) == (5.0, 2.0)
    assert rating_of(here.service.serving, True) is None
    alone = serving.recommender
    score, _, prompt = asyncio.run(reasons(shown.service, MARKS, "183"))
    assert score == pytest.approx(alone.score([(1, 5), (273, 2), (100, 5)], [183])[0], abs=1e-5)
    assert "2. Heat (1995) (rating 2.0)" in prompt
    assert ">2</td>" in marks_table(serving, MARKS) and ">No</td>" in marks_table(here.service.serving, MARKS)


@pytest.fixture(scope="module")
def paged(serve_here: Callable[..., Here], run: Path) -> Here:
    return serve_here(run, keys=(KEY,), page=True)


def test_the_page_asks_for_the_key_and_names_no_other_host(paged: Here) -> None:
    refused = httpx.get(f"{paged.url}/ui/")
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic ")
    page = httpx.get(f"{paged.url}/", auth=("anybody", KEY), follow_redirects=True)
    assert page.status_code == 200 and "rectune" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "fonts.googleapis" not in page.text
    assert not re.findall(r'<(?:script|link)[^>]+(?:src|href)="(?:https?:)?//(?!127)[^"]*"', page.text)
    config = httpx.get(f"{paged.url}/ui/config", auth=("anybody", KEY)).json()
    assert config["analytics_enabled"] is False
    # The page's own functions are no second way into the service.
    assert httpx.get(f"{paged.url}/ui/gradio_api/info", auth=("anybody", KEY)).json()["named_endpoints"] == {}
    body = {"query": "", "candidates": ["Heat"]}
    assert httpx.post(f"{paged.url}/v1/score", json=body, headers={"x-api-key": KEY}).status_code == 200


def test_a_failure_on_the_page_is_told_and_its_message_stays_here(
    paged: Here, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from rectune.serve import page

    def fail(*_given: Any) -> None:
        raise ValueError("about a film of nobody's business")

    monkeypatch.setattr(page, "search", fail)
    api, session = f"{paged.url}/ui/gradio_api", {"session_hash": "somebody"}
    joined = {"data": ["toy"], "fn_index": 0, "event_data": None, "trigger_id": 1, **session}
    assert httpx.post(f"{api}/queue/join", json=joined, auth=("x", KEY)).status_code == 200
    with httpx.stream("GET", f"{api}/queue/data", params=session, auth=("x", KEY), timeout=60) as answer:
        done = next(line for line in answer.iter_lines() if "process_completed" in line)
    assert "The service failed here" in done and "business" not in done
    line = paged.last("failure", where="page")
    assert line["kind"] == "ValueError" and "business" not in paged.journal.getvalue()
    assert "business" not in "".join(capfd.readouterr())


def test_a_page_that_is_looked_at_does_not_hold_up_the_end(paged: Here) -> None:
    """The last test of the page, which ends it as a signal does."""
    with httpx.stream("GET", f"{paged.url}/ui/gradio_api/heartbeat/abc", auth=("x", KEY), timeout=60) as beating:
        assert beating.status_code == 200
        paged.loop.call_soon_threadsafe(paged.service.drain)
        begun = time.monotonic()
        paged.server.should_exit = True
        paged.thread.join(60)
        assert not paged.thread.is_alive() and time.monotonic() - begun < 30
    assert not [line for line in paged.lines() if line["event"] == "failure" and line["where"] != "page"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_a_person_marks_films_and_sees_the_ranking_change(
    serve_here: Callable[..., Here], run: Path, tmp_path: Path, width: int, height: int
) -> None:
    """Needs `pip install playwright` and a Chromium on the PATH."""
    sync_api = pytest.importorskip("playwright.sync_api")
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser_path is None:
        pytest.skip("no Chromium")
    paged = serve_here(run, page=True)
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{paged.url}/ui/")
        page.wait_for_selector("#ranking table", timeout=60_000)
        rankings = [page.inner_text("#ranking")]
        for text, title, button in (
            ("toy st", "Toy Story (1995)", "#liked"), ("heat", "Heat (1995)", "#disliked"),
            ("fargo", "Fargo (1996)", "#liked"), ("alien", "Alien (1979)", "#disliked"),
            ("four rooms", "Four Rooms (1995)", "#liked"),
        ):  # fmt: skip
            page.fill("#search textarea, #search input", text)
            page.locator("#found label", has_text=title).click()
            page.click(button)
            page.locator("#history td", has_text=title).wait_for(timeout=60_000)
            page.wait_for_function("old => document.querySelector('#ranking').innerText !== old", arg=rankings[-1])
            rankings.append(page.inner_text("#ranking"))
        assert len(set(rankings)) == 6
        page.click("#why input")
        page.locator("[role=option]").first.click()
        page.wait_for_selector("#because table", timeout=60_000)
        assert page.locator("#because tr").count() == 6
        page.get_by_text("The prompt in full").click()
        page.wait_for_function("() => document.querySelector('#prompt textarea')?.value.includes('Heat (1995)')")
        # Nothing is wider than the screen, and nothing came from elsewhere.
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelector('#ranking table').getBoundingClientRect().right") <= width
        assert not [url for url in asked if not url.startswith((paged.url, "data:", "blob:"))]
        page.screenshot(path=str(tmp_path / f"page-{width}.png"), full_page=True)
        browser.close()
