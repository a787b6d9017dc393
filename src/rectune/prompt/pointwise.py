"""The pointwise layout: one prompt and one answer per event.

This is the one builder of its prompts. It yields a prompt as a list of parts, each of which is tokenised once;
joined, the parts are the prompt's text, and their ids are the prompt's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rectune.config import Config
from rectune.config_classify import CLASSIFY
from rectune.errors import DataError
from rectune.prompt.cut import without_middle
from rectune.prompt.events import Event, Fan, Prompt, fans_of
from rectune.prompt.pieces import ChatFrame, Pieces, end_of_text
from rectune.prompt.verbalizer import Verbalizer, build_class_words, build_verbalizer
from rectune.wording import (
    PromptTexts,
    history_heading,
    history_line,
    history_suffix,
    texts_for,
    user_input,
)


class PointwisePrompts:
    """Builds the prompts of one configuration with one tokenizer.

    Raises:
        ModelError: the chat template or the label words do not fit (see `ChatFrame`, `build_verbalizer`).
    """

    verbalizer: Verbalizer

    def __init__(self, config: Config, pieces: Pieces) -> None:
        self.pieces = pieces
        self.texts: PromptTexts = texts_for(config)
        if config.prompt_format == "classifier":
            # A classification head reads the last token: the text ends with the candidate, and nothing is asked.
            self.texts = replace(self.texts, question="")
        self.format = config.prompt_format
        self.shows = config.history_shows
        self.cutoff_len = config.cutoff_len
        self.frame = ChatFrame(pieces.tokenizer, bool(self.texts.system)) if self.format == "chat" else None
        if self.frame is not None:
            before, space, end_id = self.frame.before_answer, "", self.frame.end_id(pieces)
        else:
            before, space, end_id = self.closing() or "\n", " ", end_of_text(pieces)
        context = pieces.last_plain_text(before)
        if config.task == CLASSIFY and config.labels:
            words = [space + word for word in config.label_words]
            self.verbalizer = build_class_words(config.classes, words, context, end_id, pieces.text)
        else:
            self.verbalizer = build_verbalizer(
                space + config.positive_label, space + config.negative_label, context, end_id, pieces.text
            )
        self._heads: dict[int, list[int]] = {}
        self._tail = pieces.template(self.closing())
        self._answer_room = 0 if self.format == "classifier" else 2
        self._texts = config.task == CLASSIFY

    # --- fixed text around history and candidate ---

    def _lead(self, text: str) -> str:
        """Text above the history's heading, with the line ends between the two.

        A blank line is only left where words follow: byte-level tokenizers join two line ends differently before
        a word than at the end of a piece, and pieces of the history may follow directly.
        """
        gap = "\n\n" if self.texts.history_header else "\n"
        return text + gap if text else ""

    def opening(self) -> str:
        """Text before the history's heading; ends with a line end, or is empty."""
        texts = self.texts
        if self.frame is not None:
            system = self.frame.before_system + texts.system if texts.system else ""
            return system + self.frame.before_user + self._lead(texts.instruction)
        if self.format == "instruction":
            lead = " ".join(part for part in (texts.system, texts.instruction) if part)
            return f"### Instruction:\n{lead}\n\n### Input:\n"
        return self._lead(texts.instruction or texts.system)

    def closing(self) -> str:
        """Text after the candidate's line, up to the answer."""
        question = self.texts.question
        if self.format == "classifier":
            return ""
        if self.frame is not None:
            return question + self.frame.before_answer
        if self.format == "instruction":
            return f"{question}\n\n### Response:\nAnswer:" if question else "### Response:\nAnswer:"
        return f"{question}\nAnswer:" if question else "Answer:"

    def _history_parts(self, index: int, event: Event) -> tuple[str, str]:
        """A history line as two pieces: its number, and the item with what stands behind it."""
        suffix = history_suffix(event.rating, self.verbalizer.word(event.label), self.shows)
        return f"{index}.", f" {event.title}{suffix}\n"

    def candidate_part(self, title: str) -> str:
        """The candidate behind its header."""
        # Without a question the candidate's line is the last of the user's turn and has no line end.
        ends = not self.texts.question and self.format in ("chat", "classifier")
        return f" {title}" if ends else f" {title}\n"

    def _head(self, count: int) -> list[int]:
        """Ids of everything before the first history line, for this many lines."""
        head = self._heads.get(count)
        if head is None:
            heading = history_heading(self.texts, count) + "\n" if self.texts.history_header else ""
            opening = self.pieces.template(self.opening() + heading)
            head = self._heads[count] = [*self.pieces.start_token(self.format), *opening]
        return head

    def fitted(self, text: str) -> str:
        """A text that is to be classified, without its middle where the prompt would be longer than `cutoff_len`.

        Rubric, question and answer are never cut. What is given for an item is returned as it is.

        Raises:
            DataError: not even a few words fit.
        """
        if not self._texts:
            return text
        fixed = len(self._head(0)) + len(self.pieces.text(self.texts.candidate_header)) + len(self._tail)
        room = self.cutoff_len - self._answer_room - fixed
        found = without_middle(text, room, lambda part: len(self.pieces.spans(self.candidate_part(part))), self.pieces)
        if found is None:
            raise DataError(
                f"cutoff_len: got {self.cutoff_len}, but rubric and question alone take {fixed + self._answer_room} "
                f"tokens, which leaves no room for a text; set cutoff_len={fixed + self._answer_room + 64} or more, or "
                "shorten the rubric"
            )
        return found

    # --- prompts ---

    def warm(self, events: Sequence[Event], titles: Sequence[str], longest: int) -> None:
        """Tokenise the pieces of these distinct history events and candidates at once."""
        numbers = [f"{index}." for index in range(1, longest + 1)]
        self.pieces.warm(numbers)
        self.pieces.warm(self._history_parts(1, event)[1] for event in events)
        self.pieces.warm(self.candidate_part(title) for title in titles)

    def build(self, history: Sequence[Event], candidate: str) -> Prompt:
        """The prompt of one candidate after a history, shortened by whole events to fit `cutoff_len`.

        Room is left for the answer and the token that ends it, where a prompt has them.

        Raises:
            DataError: the prompt does not fit even without any history.
        """
        (fan,) = self.fan_out(history, [candidate])
        return Prompt([*fan.trunk, *fan.branches[0]], fan.dropped)

    def fan_out(self, history: Sequence[Event], candidates: Sequence[str]) -> list[Fan]:
        """The prompts of many candidates after one history, each shortened as if it were alone.

        Returns:
            One fan for each number of events that must be left out; as a rule one in all.

        Raises:
            DataError: a prompt does not fit even without any history.
        """
        text = self.pieces.text
        item_ids = [text(self._history_parts(1, event)[1]) for event in history]
        numbers = [text(f"{index}.") for index in range(1, len(item_ids) + 1)]
        header = text(self.texts.candidate_header)
        branches = [[*text(self.candidate_part(self.fitted(each))), *self._tail] for each in candidates]

        def lines(first: int) -> list[int]:
            shown = item_ids[first:]
            pairs = zip(numbers[: len(shown)], shown, strict=True)
            return [*self._head(len(shown)), *(token for pair in pairs for part in pair for token in part)]

        sizes: dict[int, int] = {}

        def dropped(index: int) -> int:
            room = self.cutoff_len - self._answer_room - len(header) - len(branches[index])
            for first in range(len(item_ids) + 1):
                if first not in sizes:
                    sizes[first] = len(lines(first))
                if sizes[first] <= room:
                    return first
            needed = self.cutoff_len + sizes[len(item_ids)] - room
            raise DataError(
                f"cutoff_len: got {self.cutoff_len}, but the prompt for {candidates[index][:60]!r} needs {needed} "
                f"tokens with no history at all; set cutoff_len={needed} or more, or shorten the texts"
            )

        return fans_of(branches, [dropped(index) for index in range(len(branches))], lambda at: [*lines(at), *header])

    def record(self, system: str, instruction: str, content: str) -> Prompt:
        """The prompt of an Alpaca record, whose history is text already and cannot be shortened.

        It may be longer than `cutoff_len`; whoever asks the model says so.

        Raises:
            DataError: the text holds what the tokenizer cannot read.
        """
        if self.frame is not None:
            lead = self._lead(instruction) + content
            parts = [(self.frame.before_system, True), (system, False)] if self.texts.system else []
            parts += [(self.frame.before_user, True), (lead, False), (self.frame.before_answer, True)]
            tokens = self.pieces.mixed(parts)
        else:
            parts = [(self.opening(), True), (content, False), (self._ending(), True)]
            tokens = [*self.pieces.start_token(self.format), *self.pieces.mixed(parts)]
        return Prompt(tokens, 0)

    def _ending(self) -> str:
        """What a plain-text prompt has between the user's input and the answer; see `_lead` for the blank line."""
        if self.format == "classifier":
            return ""
        if self.format == "instruction":
            return ("\n\n" if self.texts.question else "\n") + "### Response:\nAnswer:"
        return "\nAnswer:"

    def messages(self, content: str) -> list[dict[str, str]]:
        """The chat messages of a prompt whose history, candidate and question are this text."""
        messages = [{"role": "system", "content": self.texts.system}] if self.texts.system else []
        return [*messages, {"role": "user", "content": self._lead(self.texts.instruction) + content}]

    def text(self, history: Sequence[Event], candidate: str) -> str:
        """The same prompt as one string, nothing dropped, built apart from the pieces (for people and checks)."""
        lines = [
            history_line(index, event.title, event.rating, self.verbalizer.word(event.label), self.shows)
            for index, event in enumerate(history, start=1)
        ]
        content = user_input(self.texts, lines, candidate)
        if self.frame is not None:
            return str(
                self.pieces.tokenizer.apply_chat_template(
                    self.messages(content), tokenize=False, add_generation_prompt=True, enable_thinking=False
                )
            )
        return self.opening() + content + self._ending()

    def check_pieces(self, history: Sequence[Event], candidate: str) -> None:
        """Compare one prompt's pieces with the tokenisation of its whole string.

        Raises:
            ModelError: they differ, so this tokenizer merges across the places where prompts are cut.
        """
        candidate = self.fitted(candidate)
        built = self.build(history, candidate)
        shown = history[built.dropped :]
        self.pieces.check_whole(
            built.tokens,
            self.text(shown, candidate),
            [*(event.title for event in shown), candidate],
            self.pieces.start_token(self.format),
        )
