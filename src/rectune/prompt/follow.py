"""`inspect --show-examples`: what becomes of an event, or of a window of a stream, on its way to the model."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from rich.console import Console

from rectune.config import Config
from rectune.data.columns import LABEL, POSITION, TIMESTAMP, TRAIN, USER_ID
from rectune.data.folder import asked_at
from rectune.errors import DataError
from rectune.prompt.dataset import Dataset
from rectune.prompt.encode import sample_rows
from rectune.prompt.histories import EventHistories
from rectune.prompt.lengths import NO_CUT, RULE
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.stream import StreamPrompts
from rectune.prompt.tree import Trees
from rectune.wording import history_line, user_input

_PER_LINE = 12


def _printer(console: Console) -> Callable[[str], None]:
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    return say


def follow_events(config: Config, data: Dataset, prompts: PointwisePrompts, count: int, console: Console) -> None:
    """The six steps of the first training examples: record, messages, templated text, tokens, truncation, mask."""
    rows = sample_rows(data.events, TRAIN, None, config.seed)
    histories = EventHistories(data.events, data.catalog, config)
    tokenizer, verbalizer = prompts.pieces.tokenizer, prompts.verbalizer

    say = _printer(console)
    uncut = PointwisePrompts(config.with_overrides(cutoff_len=NO_CUT, sweep={}), prompts.pieces)
    # Spread over the users, since the first rows are all the first user's.
    for number, row in enumerate(rows[np.linspace(0, len(rows) - 1, count).astype(int)].tolist(), start=1):
        history, candidate = histories.history(row), histories.titles[row]
        word = verbalizer.word(int(data.events[LABEL][row]))
        lines = [
            history_line(at, event.title, event.rating, verbalizer.word(event.label), config.history_shows)
            for at, event in enumerate(history, start=1)
        ]
        content = user_input(prompts.texts, lines, candidate)
        record = {
            "instruction": prompts.texts.instruction,
            "input": content,
            "output": word,
            "system": prompts.texts.system,
        }
        say(f"{RULE}\nEXAMPLE {number}\n{RULE}")
        say("[STEP 1] Record\n" + json.dumps(record, indent=2, ensure_ascii=False))
        say("\n[STEP 2] Messages")
        if prompts.frame is not None:
            for message in prompts.messages(content):
                say(f"  {message['role']}: {message['content']}")
            say(f"  assistant: {word}")
        else:
            say(f"  none: prompt_format={config.prompt_format} is plain text")
        say("\n[STEP 3] Text after the template, with the answer")
        end = tokenizer.decode([verbalizer.end_id])
        space = "" if prompts.frame is not None else " "
        classifies = config.prompt_format == "classifier"
        before = uncut.build(history, candidate)
        say(prompts.text(history, candidate) + ("" if classifies else space + word + end))
        answer = [] if classifies else [verbalizer.token(int(data.events[LABEL][row])), verbalizer.end_id]
        ids = [*before.tokens, *answer]
        say(f"\n[STEP 4] Tokens: {len(ids)}\n  first 12: {ids[:12]}\n  last 12:  {ids[-12:]}")
        say(f"\n[STEP 5] Truncation at cutoff_len={config.cutoff_len}")
        try:
            built = prompts.build(history, candidate)
        except DataError as error:
            say(f"  {error}\n")
            continue
        ids = [*built.tokens, *answer]
        if built.dropped:
            say(f"  the {built.dropped} oldest of {len(history)} events are left out, whole: {len(ids)} tokens remain")
        elif len(built.tokens) < len(before.tokens):
            say(f"  the middle of the text is left out: {len(ids)} tokens remain")
        else:
            say(f"  nothing is left out ({len(ids)} <= {config.cutoff_len})")
        say("\n[STEP 6] Where the loss is taken")
        if classifies:
            say(f"  at the last token, by a classification head: the class is {word!r}\n")
            continue
        say(f"  masked: {len(built.tokens)} prompt tokens; trained: 2")
        say(f"  after token {len(built.tokens) - 1} comes {word!r} ({ids[-2]}), after it {end!r} ({ids[-1]})\n")


class _Window:
    """One window of a stream, ready to be shown.

    Args:
        data, prompts, histories: what the windows were made from.
        trees: the windows, with events of one moment in the order of the table.
        index: which of them.

    Attributes:
        rows, at: of each answer, the row of its event and the token where it is read.
        asked_at: int64 [all events]; the position at which each is asked about.
        run, fork: of each token, as `Trees.runs` gives them.
        trunk: tokens of the trunk.
        start, stop: rows of the trunk's first event, and of the one behind its last.
    """

    def __init__(
        self, data: Dataset, prompts: StreamPrompts, histories: EventHistories, trees: Trees, index: int
    ) -> None:
        self.data, self.prompts, self.histories, self.trees, self.index = data, prompts, histories, trees, index
        self.asked_at = asked_at(data.events)
        self.answers = trees.answers(index)
        self.rows: list[int] = trees.rows[self.answers].tolist()
        self.at: list[int] = trees.answer_at[self.answers].tolist()
        self.words = {
            at: prompts.verbalizer.word(int(label))
            for at, label in zip(self.at, trees.labels[self.answers], strict=True)
        }
        self.run, self.fork = trees.runs(index)
        self.trunk = int((self.run == 0).sum())
        self.start = self.stop = int(trees.shown_from[self.answers.start])
        size = len(prompts.head)
        while size < self.trunk:
            event = histories.event(self.stop)
            size += len(prompts.pieces.text(prompts.line(event.title) + prompts.suffix(event)))
            self.stop += 1

    def record(self) -> list[str]:
        """The window's events, one a line."""
        events, stops = self.data.events, self.histories.stops
        places = dict(zip(self.rows, self.at, strict=True))
        own = events[POSITION].to_numpy() == self.asked_at
        shown = sorted({*range(self.start, self.stop), *self.rows}, key=lambda row: (self.asked_at[row], row))
        lines = [f"user {events[USER_ID][self.start]}, {len(shown)} events; = marks a timestamp that several share"]
        for row in shown:
            event = self.histories.event(row)
            near = slice(max(row - 1, 0), row + 2)
            # A moment's history ends in one place; a sampled negative is no part of it.
            tied = own[row] and int(np.sum((stops[near] == stops[row]) & own[near])) > 1
            role = "history"
            if row in places:
                role = f"asked on branch {self.run[places[row]]}" if self.run[places[row]] else "asked on the trunk"
            role = role if own[row] else f"a sampled negative, {role}"
            rated = "" if event.rating is None else f"{event.rating:g} "
            lines.append(
                f"  {self.asked_at[row]:>5} {events[TIMESTAMP][row]:>11} {'=' if tied else ' '} {event.title} "
                f"[{rated}{self.prompts.verbalizer.word(event.label)}] {role}"
            )
        return lines

    def messages(self) -> list[str]:
        """The messages that the stream stands behind."""
        texts = self.prompts.texts
        if self.prompts.frame is None:
            return ["  none: prompt_format=completion is plain text"]
        system = [f"  system: {texts.system}"] if texts.system else []
        return [*system, f"  user: {texts.stream_header}", "  assistant: the stream"]

    def decoded(self, tokens: list[int]) -> str:
        """Tokens as text, special ones included."""
        return str(self.prompts.pieces.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def _marked(self, begin: int, end: int) -> str:
        """The text of some of the tokens, with the right answer in brackets where one is read."""
        tokens, text = self.trees.tree_tokens(self.index).tolist(), ""
        for at in self.at:
            if begin <= at < end:
                text += f"{self.decoded(tokens[begin : at + 1])}⟨{self.words[at]}⟩"
                begin = at + 1
        return text + self.decoded(tokens[begin:end])

    def text(self) -> list[str]:
        """Trunk and branches as text."""
        lines = [self._marked(0, self.trunk).rstrip("\n")]
        for row, at in zip(self.rows, self.at, strict=True):
            if self.run[at]:
                begin, beside = int(np.searchsorted(self.run, self.run[at])), int(self.histories.stops[row])
                place = f"beside {self.histories.titles[beside]!r}" if beside < self.stop else "at the trunk's end"
                lines.append(
                    f"  branch {self.run[at]} leaves after token {self.fork[at] - 1}, {place}: "
                    f"{self._marked(begin, at + 1)}"
                )
        return lines

    def cut(self, cutoff: int) -> list[str]:
        """Where the window lies among the user's, and what it repeats."""
        users = self.data.users(self.trees.rows[self.trees.answer_offsets[:-1]])
        user, position = users[self.index], self.asked_at
        history = set(range(self.start, self.stop)) - set(self.rows)
        repeated = int(np.isin(self.trees.rows[: self.answers.start], list(history)).sum())
        trunk = "no event"
        if self.stop > self.start:
            trunk = f"events {position[self.start]} to {position[self.stop - 1]}"
        return [
            f"  window {users[: self.index + 1].count(user)} of {users.count(user)} of this user: {len(self.run)} of "
            f"{cutoff} tokens",
            f"  trunk: {trunk}; {len(history)} of them are history only, of which an earlier window asks about "
            f"{repeated}",
            f"  answers: {len(self.rows)}, of events {position[self.rows[0]]} to {position[self.rows[-1]]}",
        ]

    def loss(self, over: str) -> list[str]:
        """Where the loss is taken, and which word should come there."""
        among = "all tokens" if over == "vocabulary" else "the two label words"
        lines = [f"  at {len(self.at)} of {len(self.run)} tokens, of the word that should come next, among {among}"]
        for name, branch in (("trunk", False), ("branches", True)):
            found = [f"{at} {self.words[at]}" for at in self.at if bool(self.run[at]) == branch]
            for first in range(0, len(found), _PER_LINE):
                lines.append(f"  {name}, after token: {', '.join(found[first : first + _PER_LINE])}")
        return lines

    def plain(self) -> list[str]:
        """The plain prompt of one answer: the first on a branch, or the last of all."""
        chosen = next((number for number, at in enumerate(self.at) if self.run[at]), len(self.at) - 1)
        at, verbalizer = self.at[chosen], self.prompts.verbalizer
        path = self.trees.path(self.index, at).tolist()
        label = int(self.trees.labels[self.answers.start + chosen])
        prior = float(self.trees.prior[self.answers.start + chosen])
        return [
            self.decoded(path),
            f"  these {len(path)} tokens are what the answer at token {at} sees; next comes "
            f"{self.words[at]!r} ({verbalizer.token(label)})"
            + (f"; prior {prior:+.2f}" if self.trees.prior.any() else ""),
        ]


def follow_windows(
    config: Config,
    data: Dataset,
    prompts: StreamPrompts,
    histories: EventHistories,
    trees: Trees,
    count: int,
    console: Console,
) -> None:
    """The six steps of windows spread over all: record, messages, text, tokens, the window's cut, the loss.

    Args:
        config, data, prompts, histories: what the windows were made from.
        trees: all windows, with events of one moment in the order of the table.
        count: how many to follow, at most.
        console: where to print.
    """
    say = _printer(console)
    chosen = np.unique(np.linspace(0, len(trees) - 1, count).astype(int)).tolist()
    for number, index in enumerate(chosen, start=1):
        window = _Window(data, prompts, histories, trees, index)
        trunk, size = window.trunk, len(window.run)
        ids = trees.tree_tokens(index).tolist()
        steps = {
            "Record": window.record(),
            "Messages": window.messages(),
            "Text of the trunk, ⟨the answer⟩ where one is read, and branches": window.text(),
            f"Tokens: {size}, {trunk} on the trunk and {size - trunk} on branches": [
                f"  first 12: {ids[:12]}",
                f"  last 12:  {ids[-12:]}",
            ],
            f"The window at cutoff_len={config.cutoff_len}": window.cut(config.cutoff_len),
            "Where the loss is taken": window.loss(config.loss_over),
            "": window.plain(),
        }
        say(f"{RULE}\nEXAMPLE {number}\n{RULE}")
        for step, (title, lines) in enumerate(steps.items(), start=1):
            say("\n".join([f"[STEP {step}] {title}" if title else "[PLAIN PROMPT] of one answer", *lines, ""]))
