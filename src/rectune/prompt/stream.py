"""The stream layout: a user's events one after the other, with an answer at every one of them.

A line is an item, a cue and what became of it: `Heat (1995): Yes`. The answer of an event is read behind its cue.
Its plain prompt is the head, the lines of strictly earlier events, and its own line up to the cue; `build` makes it,
and `windows.py` lays many of them into one tree.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from rectune.baselines.item_rates import rate_text
from rectune.config import Config
from rectune.errors import DataError, ModelError
from rectune.prompt.events import Event, Fan, Prompt, fans_of
from rectune.prompt.pieces import ChatFrame, Pieces
from rectune.prompt.verbalizer import Verbalizer, build_verbalizer
from rectune.wording import PromptTexts, stream_suffix, texts_for

_STEP = 32
"""Room for a candidate's line is reserved in steps of this many tokens, so that as a rule all candidates of a user see
the same events, and so share one trunk, where the history is longer than what fits."""


class StreamPrompts:
    """Builds the prompts of one configuration with one tokenizer.

    Raises:
        ModelError: the chat template or the label words do not fit (see `ChatFrame`, `build_verbalizer`).
    """

    def __init__(self, config: Config, pieces: Pieces) -> None:
        self.pieces = pieces
        self.texts: PromptTexts = texts_for(config)
        self.format = config.prompt_format
        self.shows = config.history_shows
        self.cutoff_len = config.cutoff_len
        self.cue = config.stream_cue
        self.frame = ChatFrame(pieces.tokenizer, bool(self.texts.system)) if self.format == "chat" else None
        self.verbalizer: Verbalizer = build_verbalizer(
            " " + config.positive_label.strip(),
            " " + config.negative_label.strip(),
            "x" + self.cue,
            self._line_end(),
            pieces.text,
        )
        self.head: list[int] = [*pieces.start_token(self.format), *pieces.template(self.head_text())]

    def _line_end(self) -> int:
        """The token of a line end, which is where a generated answer is over."""
        ids = self.pieces.text("\n")
        if len(ids) != 1:
            raise ModelError(
                f"the tokenizer {type(self.pieces.tokenizer).__name__} has no token of its own for a line end, which "
                "the stream layout needs; use layout=pointwise"
            )
        return ids[0]

    def head_text(self) -> str:
        """Template text before the first line."""
        header = self.texts.stream_header
        if self.frame is None:
            return header + "\n" if header else ""
        system = self.frame.before_system + self.texts.system if self.texts.system else ""
        return system + self.frame.before_user + header + self.frame.before_answer

    def line(self, title: str) -> str:
        """An event's line up to where its answer is read."""
        return title + self.cue

    def suffix(self, event: Event) -> str:
        """What stands behind the cue in a history: the label or the rating, and the line's end."""
        return stream_suffix(event.rating, self.verbalizer.word(event.label), self.shows)

    def line_room(self, text: str, with_rate: bool) -> int:
        """Tokens to reserve for an item's line, whatever like-rate stands in it; counts up to a billion."""
        if not with_rate:
            return len(self.pieces.text(self.line(text)))
        rates = [rate_text(share / 100, int("8" * digits)) for share in (8, 88, 100) for digits in range(1, 10)]
        return max(len(self.pieces.text(self.line(text + rate))) for rate in rates)

    def suffix_room(self) -> int:
        """Tokens of the longest suffix that an event can have, ratings taken to lie between 0 and 10."""
        known = [Event("", half / 2, label) for half in range(21) for label in (0, 1)]
        return max(len(self.pieces.text(self.suffix(event))) for event in known)

    def build(self, history: Sequence[Event], candidate: str) -> Prompt:
        """The plain prompt of one candidate after a history, shortened by whole events to fit `cutoff_len`.

        What a candidate reserves is its line rounded up to 32 tokens, if there is room for that.

        Raises:
            DataError: the prompt does not fit even without any history.
        """
        (fan,) = self.fan_out(history, [candidate])
        return Prompt([*fan.trunk, *fan.branches[0]], fan.dropped)

    def fan_out(self, history: Sequence[Event], candidates: Sequence[str]) -> list[Fan]:
        """The plain prompts of many candidates after one history, each shortened as if it were alone.

        Returns:
            One fan for each number of events that must be left out; as a rule one in all.

        Raises:
            DataError: a prompt does not fit even without any history.
        """
        text = self.pieces.text
        lines = [[*text(self.line(event.title)), *text(self.suffix(event))] for event in history]
        asked = [text(self.line(candidate)) for candidate in candidates]
        room = self.cutoff_len - len(self.head)
        longest = max(range(len(asked)), key=lambda index: len(asked[index]), default=0)
        if asked and len(asked[longest]) > room:
            needed = len(self.head) + len(asked[longest])
            raise DataError(
                f"cutoff_len: got {self.cutoff_len}, but the prompt for {candidates[longest][:60]!r} needs {needed} "
                f"tokens with no history at all; set cutoff_len={needed} or more, or shorten the texts"
            )
        steps = [_STEP * -(-len(branch) // _STEP) for branch in asked]
        reserved = [step if step <= room else len(branch) for step, branch in zip(steps, asked, strict=True)]
        # Tokens of the newest 0, 1, 2, ... events, as many as an empty candidate leaves room for.
        sizes = [0]
        while len(sizes) <= len(lines) and sizes[-1] + len(lines[-len(sizes)]) <= room:
            sizes.append(sizes[-1] + len(lines[-len(sizes)]))
        return fans_of(
            asked,
            [len(lines) - bisect_right(sizes, room - size) + 1 for size in reserved],
            lambda first: [*self.head, *(token for line in lines[first:] for token in line)],
        )

    def record(self, system: str, instruction: str, content: str) -> Prompt:
        """Refuse an Alpaca record: its text is the pointwise layout's.

        Raises:
            DataError: always.
        """
        raise DataError(
            "an Alpaca record (instruction, input) holds the pointwise layout's text, which an adapter of the stream "
            "layout was not trained on; give records with candidate_title and history_titles (test_raw.jsonl)"
        )

    def text(self, history: Sequence[Event], candidate: str) -> str:
        """The same prompt as one string, nothing dropped, built apart from the pieces (for people and checks)."""
        lines = "".join(self.line(event.title) + self.suffix(event) for event in history) + self.line(candidate)
        if self.frame is None:
            return self.head_text() + lines
        messages = [{"role": "system", "content": self.texts.system}] if self.texts.system else []
        messages.append({"role": "user", "content": self.texts.stream_header})
        templated = self.pieces.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return str(templated) + lines

    def check_pieces(self, history: Sequence[Event], candidate: str) -> None:
        """Compare one prompt's pieces with the tokenisation of its whole string.

        Raises:
            ModelError: they differ, so this tokenizer merges across the places where prompts are cut.
        """
        built = self.build(history, candidate)
        shown = history[built.dropped :]
        self.pieces.check_whole(
            built.tokens,
            self.text(shown, candidate),
            [*(event.title for event in shown), candidate],
            self.pieces.start_token(self.format),
        )
