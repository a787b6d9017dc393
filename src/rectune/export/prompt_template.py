"""A run's prompt as two Jinja templates, with which any program writes it: what candidates share, and each one's rest.

`query` and `document` end and begin where tokenizers of the byte-level family cut anyway, so they may be sent as one
string or as the pair of a cross-encoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rectune.prompt.events import Event
from rectune.prompt.layouts import Prompts
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.stream import StreamPrompts
from rectune.wording import NO_HISTORY

_CANDIDATE = "\ue000candidate\ue001"
"""Stands for a candidate; no text of a prompt holds it."""


@dataclass(frozen=True)
class PromptTemplate:
    """How to write a prompt.

    Attributes:
        query: Jinja template over `history`, a list of `{item, rating, label}`, oldest first.
        document: Jinja template over `candidate`, the item asked about.
    """

    query: str
    document: str

    @cached_property
    def _compiled(self) -> tuple[Any, Any]:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(keep_trailing_newline=True)
        return environment.from_string(self.query), environment.from_string(self.document)

    def pair(self, history: Sequence[Event], candidate: str) -> tuple[str, str]:
        """Both halves of a prompt."""
        query, document = self._compiled
        events = [{"item": event.title, "rating": event.rating, "label": event.label} for event in history]
        return query.render(history=events), document.render(candidate=candidate)

    def text(self, history: Sequence[Event], candidate: str) -> str:
        """A prompt as one string."""
        return "".join(self.pair(history, candidate))


def _fixed(text: str) -> str:
    """Fixed text as a Jinja expression: braces and line ends in it mean nothing to the template.

    >>> _fixed('Say "{{ x }}"')
    '{{ "Say \\\\"{{ x }}\\\\"" }}'
    """
    return "{{ " + _word(text) + " }}" if text else ""


def _word(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def start_text(pieces: Pieces) -> str:
    """The beginning-of-text marker that the tokenizer puts before any text that it is given."""
    return str(pieces.tokenizer.decode(pieces.start_token("completion")))


def template_of(prompts: Prompts) -> PromptTemplate:
    """The templates of a run's prompts, for a client that lets the tokenizer add what it adds by itself."""
    found = _stream(prompts) if isinstance(prompts, StreamPrompts) else _pointwise(prompts)
    start = start_text(prompts.pieces)
    lead, query, document = found
    return PromptTemplate(_fixed(lead.removeprefix(start) if start else lead) + query, document)


def _stream(prompts: StreamPrompts) -> tuple[str, str, str]:
    words, cue = prompts.verbalizer, _fixed(prompts.cue)
    outcome = {
        "label": f"{{{{ {_word(words.positive)} if event.label else {_word(words.negative)} }}}}",
        "rating": '{{ "?" if event.rating is none else "%g"|format(event.rating) }}',
        "nothing": "?",
    }[prompts.shows]
    line = "{{ event.item }}" + cue + " " + outcome + _fixed("\n")
    return prompts.head_text(), "{% for event in history %}" + line + "{% endfor %}", "{{ candidate }}" + cue


def _pointwise(prompts: PointwisePrompts) -> tuple[str, str, str]:
    texts, words = prompts.texts, prompts.verbalizer
    heading = ""
    if texts.history_header:
        before, *rest = texts.history_header.split("{count}")
        counted = _fixed(before) + "".join("{{ history|length }}" + _fixed(part) for part in rest)
        heading = counted + "{% if not history %}" + _fixed(f" {NO_HISTORY}") + "{% endif %}" + _fixed("\n")
    outcome = {
        "label": f"{_fixed(' → ')}{{{{ {_word(words.positive)} if event.label else {_word(words.negative)} }}}}",
        "rating": '{% if event.rating is not none %} (rating {{ "%.1f"|format(event.rating) }}){% endif %}',
        "nothing": "",
    }[prompts.shows]
    line = "{{ loop.index }}. {{ event.item }}" + outcome + _fixed("\n")
    query = heading + "{% for event in history %}" + line + "{% endfor %}" + _fixed(texts.candidate_header)
    before, after = prompts.candidate_part(_CANDIDATE).split(_CANDIDATE)
    return prompts.opening(), query, _fixed(before) + "{{ candidate }}" + _fixed(after + prompts.closing())
