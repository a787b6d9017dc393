"""The page at /ui: mark items, see the ranking change, and ask why. Nothing on it comes from another host."""

from __future__ import annotations

import html
import os
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from rectune.errors import RectuneError
from rectune.serve.explain import Mark, Reason, Row, ranking, rating_of, reasons, search
from rectune.serve.guard import PAGE
from rectune.serve.refusal import Refused
from rectune.serve.service import Service, Serving

_FOUND, _RANKED, _MARKS = 8, 20, 30
"""Items found by a search, ranked, and marked at most."""
_AT_ONCE = 16
"""Times that one button is answered at once, for different people."""
_CSS = """
.gradio-container {max-width: 1200px !important}
table.rt {width: 100%; border-collapse: collapse; font-size: 0.95rem; margin: 0}
table.rt, table.rt tr, table.rt th, table.rt td {border: none !important}
table.rt th, table.rt td { padding: 4px 6px !important; vertical-align: middle}
table.rt th {text-align: left; font-weight: 600; opacity: 0.75}
table.rt td {border-top: 1px solid var(--border-color-primary) !important}
table.rt .n {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap}
table.rt .bar {width: 26%}
table.rt .bar i {display: block; height: 7px; border-radius: 4px; background: var(--primary-500); margin: 2px 0}
table.rt .bar i.b {background: var(--neutral-400)}
table.rt .bar i.down {background: #c2410c}
table.rt .mine {font-weight: 700}
@media (max-width: 640px) {
  #ranking .bar, #ranking th.bar {display: none}
  table.rt th, table.rt td {padding: 4px 3px !important}
  #liked, #disliked, #asked {padding-inline: 4px; white-space: nowrap}
}
"""


def _bar(share: float, kind: str = "") -> str:
    return f'<i class="{kind}" style="width:{max(1.5, 100 * min(share, 1.0)):.1f}%"></i>'


def ranking_table(rows: list[Row], wanted: list[str]) -> str:
    """A ranking as HTML, titles escaped."""
    lines = [
        f'<tr><td class="n">{place}</td>'
        f'<td class="{"mine" if row.item_id in wanted else ""}">{html.escape(row.title)}</td>'
        f'<td class="bar">{_bar(row.tuned)}{_bar(row.untuned, "b")}</td>'
        f'<td class="n">{100 * row.tuned:.1f} %</td><td class="n">{100 * row.untuned:.1f} %</td></tr>'
        for place, row in enumerate(rows, start=1)
    ]
    names = (("n", "#"), ("", "title"), ("bar", ""), ("n", "tuned"), ("n", "untuned"))
    head = "".join(f'<th scope="col" class="{kind}">{name}</th>' for kind, name in names)
    return f'<table class="rt"><tr>{head}</tr>{"".join(lines)}</table>'


def marks_table(serving: Serving, marks: list[Mark]) -> str:
    """What was marked as HTML, titles escaped."""
    if not marks:
        return "Nothing yet: search for something you know, and say whether you liked it."
    words, lines = serving.recommender.run.prompts.verbalizer, []
    for place, mark in enumerate(marks, start=1):
        rating = rating_of(serving, mark.liked)
        said = words.word(int(mark.liked)).strip() if rating is None else f"{rating:g}"
        title = html.escape(serving.recommender.titles.title(mark.item_id))
        lines.append(f'<tr><td class="n">{place}</td><td>{title}</td><td class="n">{html.escape(said)}</td></tr>')
    return f'<table class="rt">{"".join(lines)}</table>'


def reasons_table(score: float, found: list[Reason]) -> str:
    """Why a score is what it is, as HTML, titles escaped."""
    largest = max((abs(reason.change) for reason in found), default=0.0) or 1.0
    lines = [
        f"<tr><td>{html.escape(reason.title)}</td><td>{'liked' if reason.liked else 'not liked'}</td>"
        f'<td class="bar">{_bar(abs(reason.change) / largest, "" if reason.change >= 0 else "down")}</td>'
        f'<td class="n">{100 * reason.change:+.2f}</td></tr>'
        for reason in found
    ]
    head = '<tr><th scope="col">event</th><th></th><th></th><th scope="col" class="n">points</th></tr>'
    table = f'<table class="rt">{head}{"".join(lines)}</table>' if found else "There is no history to leave out."
    return f"<p>P(like) is <b>{100 * score:.1f} %</b>. What each event adds to it:</p>{table}"


def add_page(app: FastAPI, service: Service) -> FastAPI:
    """The application with the page."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    def told(action: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """The action, whose failures are told on the page; of those nobody foresaw, the journal gets kind and place.

        Gradio itself would print them with what they quote of a person's marks.
        """

        @wraps(action)
        async def done(*given: Any) -> Any:
            try:
                return await action(*given)
            except (Refused, RectuneError) as error:
                raise gr.Error(str(error), print_exception=False) from error
            except gr.Error:
                raise
            except Exception as error:
                service.journal.failed("page", error)
                raise gr.Error("The service failed here; its journal says where.", print_exception=False) from error

        return done

    async def find(text: str) -> Any:
        found = await service.look_up(lambda serving: search(serving, text[:200], _FOUND))
        nothing = "Nothing is called like that." if text.strip() and not found else ""
        return gr.update(choices=found, value=found[0][1] if found else None, info=nothing)

    async def shown(marks: list[Mark], wanted: list[str]) -> tuple[Any, ...]:
        rows = await ranking(service, marks, wanted, _RANKED)
        choices = [(row.title, row.item_id) for row in rows]
        return marks_table(service.serving, marks), ranking_table(rows, wanted), gr.update(choices=choices, value=None)

    async def mark(item: str | None, liked: bool, marks: list[Mark], wanted: list[str]) -> tuple[Any, ...]:
        if item is None:
            raise gr.Error("Search for something first, and choose it.", print_exception=False)
        marks = [*(each for each in marks if each.item_id != item), Mark(item, liked)][-_MARKS:]
        return (marks, *await shown(marks, wanted))

    async def like(item: str | None, marks: list[Mark], wanted: list[str]) -> tuple[Any, ...]:
        return await mark(item, True, marks, wanted)

    async def dislike(item: str | None, marks: list[Mark], wanted: list[str]) -> tuple[Any, ...]:
        return await mark(item, False, marks, wanted)

    async def want(item: str | None, marks: list[Mark], wanted: list[str]) -> tuple[Any, ...]:
        if item is None:
            raise gr.Error("Search for something first, and choose it.", print_exception=False)
        wanted = list(dict.fromkeys([*wanted, item]))[-_RANKED:]
        return (wanted, *await shown(marks, wanted))

    async def undo(marks: list[Mark], wanted: list[str]) -> tuple[Any, ...]:
        return (marks[:-1], *await shown(marks[:-1], wanted))

    async def clear() -> tuple[Any, ...]:
        return ([], [], *await shown([], []))

    async def why(item: str | None, marks: list[Mark]) -> tuple[str, str]:
        if item is None:
            return "", ""
        score, found, prompt = await reasons(service, marks, item)
        return reasons_table(score, found), prompt

    with gr.Blocks(title="rectune", analytics_enabled=False) as page:
        marks, wanted = gr.State([]), gr.State([])
        gr.Markdown(
            "# Will they like it?\nSearch, mark what you liked and what not, and see the ranking change. "
            "*Rank it* puts an item into the ranking."
        )
        with gr.Row():
            with gr.Column(min_width=300, scale=2):
                box = gr.Textbox(
                    label="Search", placeholder="a title, or a part of it", elem_id="search", max_length=200
                )
                choice = gr.Radio(label="Found", choices=[], elem_id="found")
                with gr.Row():
                    liked = gr.Button("Liked", variant="primary", elem_id="liked", min_width=90)
                    disliked = gr.Button("Not liked", elem_id="disliked", min_width=90)
                    asked = gr.Button("Rank it", elem_id="asked", min_width=90)
                gr.Markdown("### Your history, oldest first")
                history = gr.HTML(elem_id="history")
                with gr.Row():
                    back = gr.Button("Undo", size="sm", elem_id="undo", min_width=90)
                    reset = gr.Button("Start again", size="sm", elem_id="clear", min_width=90)
            with gr.Column(min_width=300, scale=3):
                gr.Markdown("### What is popular, ranked for you")
                table = gr.HTML(elem_id="ranking")
                about = gr.Dropdown(label="Why?", choices=[], elem_id="why", info="An item of the ranking")
                because = gr.HTML(elem_id="because")
                with gr.Accordion("The prompt in full", open=False):
                    prompt = gr.Textbox(
                        label="The prompt in full", show_label=False, lines=8, max_lines=24, interactive=False,
                        elem_id="prompt",
                    )  # fmt: skip
        seen = [history, table, about]
        box.change(
            told(find), box, choice, trigger_mode="always_last", show_progress="hidden", api_visibility="private"
        )
        for button, action, into in ((liked, like, marks), (disliked, dislike, marks), (asked, want, wanted)):
            button.click(told(action), [choice, marks, wanted], [into, *seen], api_visibility="private")
        back.click(told(undo), [marks, wanted], [marks, *seen], api_visibility="private")
        reset.click(told(clear), None, [marks, wanted, *seen], api_visibility="private")
        about.change(told(why), [about, marks], [because, prompt], api_visibility="private")
        page.load(told(shown), [marks, wanted], seen, api_visibility="private")
    # Gradio would let one person in at a time, and any number wait; what is asked together is scored together.
    page.queue(max_size=service.limits.queue, default_concurrency_limit=_AT_ONCE)

    @app.get("/", include_in_schema=False)
    async def front() -> RedirectResponse:
        return RedirectResponse(PAGE)

    fonts = ["system-ui", "sans-serif"]
    # Gradio's own greys and greens are too pale to read for many (WCAG asks for a contrast of 4.5 to 1).
    theme = gr.themes.Default(primary_hue="teal", font=fonts, font_mono=["ui-monospace", "monospace"]).set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500", button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )  # fmt: skip
    mounted: FastAPI = gr.mount_gradio_app(
        app, page, PAGE, theme=theme, css=_CSS, footer_links=[], run_history=False, show_error=False, ssr_mode=False,
        enable_monitoring=False, mcp_server=False, pwa=False, max_file_size="1kb",
    )  # fmt: skip
    return mounted
