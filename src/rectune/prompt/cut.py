"""Long texts without their middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

ELLIPSIS = " … "
_LEAST = 2
"""Tokens that must be left of a text, one at its beginning and one at its end."""


class Spans(Protocol):
    """Whatever knows where the tokens of a text are."""

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Begin and end of each token, in characters."""


def without_middle(text: str, room: int, size: Callable[[str], int], tokens: Spans) -> str | None:
    """A text as it is where it fits, else its beginning and its end, half of the room each, with ELLIPSIS between.

    Texts say what they are about first and what they make of it last: of head, tail and both, keeping both was the best
    in Sun et al., "How to fine-tune BERT for text classification" (2019, section 5.3.1). Cuts are made between tokens,
    and what comes out is a plain text again, so that every program makes the same tokens of it.

    Args:
        text: the text.
        room: how many tokens it may take.
        size: tokens of a text where it stands in the prompt.
        tokens: knows where they are.

    Returns:
        The text, or None where not even a few of its tokens fit.
    """
    if size(text) <= room:
        return text
    spans = tokens.spans(text)
    for kept in range(min(room, len(spans) - 1), _LEAST - 1, -1):
        head, tail = kept - kept // 2, kept // 2
        found = text[: spans[head - 1][1]].rstrip() + ELLIPSIS + text[spans[-tail][0] :].lstrip()
        if size(found) <= room:
            return found
    return None
