"""Text to tokens, piece by piece, with data kept apart from markers.

A prompt is a list of pieces: special tokens, which only the template can bring, and plain text, which is
tokenised by a copy of the tokenizer that knows no special or added token at all. Text from the data can
therefore never become one. Plain text is cut only where no tokenizer of the byte-level family merges across
(after a line end, or before a single space), so that each item's text is tokenised once and prompts are put
together from ids. `check_pieces` proves the equality with the whole string on the loaded tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

from rectune.errors import DataError, ModelError

_SYSTEM, _USER, _ANSWER = "\ue000system\ue001", "\ue000user\ue001", "\ue000answer\ue001"
"""Stand-ins from Unicode's private use area: no template looks for them and no real prompt holds them."""


class Pieces:
    """Token ids of plain text and of special tokens, each distinct text tokenised once.

    Attributes:
        held: characters of the texts whose ids are kept.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"the tokenizer {type(tokenizer).__name__} has no fast (Rust) form, which rectune needs; "
                "convert it to a tokenizer.json first"
            )
        self.tokenizer = tokenizer
        self.special_ids: dict[str, int] = {
            token.content: index for index, token in tokenizer.added_tokens_decoder.items()
        }
        definition = json.loads(backend.to_str())
        definition.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
        self._plain = Tokenizer.from_str(json.dumps(definition))
        self._ids: dict[str, list[int]] = {}
        self.held = 0
        self._check_plain(tokenizer)
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None

    def _check_plain(self, tokenizer: Any) -> None:
        """Refuse a vocabulary that spells a special token out of plain text (Unigram and word-level ones do)."""
        for index, token in tokenizer.added_tokens_decoder.items():
            if token.special and index in self.text(token.content):
                raise ModelError(
                    f"the tokenizer {type(tokenizer).__name__} reads {token.content!r} in a title as its special "
                    "token; take a model with a byte-level tokenizer (Qwen, SmolLM, Llama 3)"
                )

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides ids: the tokenizer's definition and its chat template."""
        parts = [self.tokenizer.backend_tokenizer.to_str(), str(self.tokenizer.chat_template)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def text(self, text: str) -> list[int]:
        """Ids of plain text; nothing in it can become a special token. The list is shared: do not change it.

        Raises:
            DataError: the text is not valid Unicode.
        """
        ids = self._ids.get(text)
        if ids is None:
            try:
                ids = self._plain.encode(text, add_special_tokens=False).ids
            except TypeError as error:
                broken = ascii(text if len(text) <= 60 else text[:60])
                raise DataError(
                    f"the text {broken} holds half a character (a lone surrogate such as \\ud83d); write it as UTF-8"
                ) from error
            self._ids[text] = ids
            self.held += len(text)
        return ids

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of plain text begins and ends in it, in characters; a token may be a part of one."""
        return [(begin, end) for begin, end in self._plain.encode(text, add_special_tokens=False).offsets]

    def forget(self) -> None:
        """Keep nothing of what was tokenised so far; for whoever meets new texts without end."""
        self._ids, self.held = {}, 0

    def warm(self, texts: Iterable[str]) -> None:
        """Tokenise many texts at once on all cores."""
        new = list(dict.fromkeys(text for text in texts if text not in self._ids))
        for text, encoding in zip(new, self._plain.encode_batch_fast(new, add_special_tokens=False), strict=True):
            self._ids[text] = encoding.ids
            self.held += len(text)

    def template(self, text: str) -> list[int]:
        """Ids of text from the template itself, in which special tokens count."""
        ids: list[int] = []
        for part in self._special.split(text) if self._special else [text]:
            special = self.special_ids.get(part)
            if special is not None:
                ids.append(special)
            elif part:
                ids.extend(self.text(part))
        return ids

    def mixed(self, parts: Iterable[tuple[str, bool]]) -> list[int]:
        """Ids of template text and plain text in turn, as the tokenizer would see the whole.

        Args:
            parts: (text, is it from the template) in order. Plain text next to template text is tokenised as one.
        """
        ids: list[int] = []
        run = ""
        for text, from_template in parts:
            for part in self._special.split(text) if from_template and self._special else [text]:
                if from_template and part in self.special_ids:
                    ids += [*self.text(run), self.special_ids[part]] if run else [self.special_ids[part]]
                    run = ""
                else:
                    run += part
        return [*ids, *self.text(run)] if run else ids

    def start_token(self, prompt_format: str) -> list[int]:
        """The beginning-of-text token that this tokenizer puts before plain text, if it does; a chat template's own
        text begins with it already."""
        if prompt_format == "chat":
            return []
        bare, full = self.tokenizer("a", add_special_tokens=False).input_ids, self.tokenizer("a").input_ids
        return list(full[: len(full) - len(bare)]) if full[-len(bare) :] == bare else []

    def check_whole(self, tokens: list[int], whole: str, content: list[str], start: list[int]) -> None:
        """Compare a prompt's ids with those of its whole string.

        Args:
            tokens: the ids put together from pieces.
            whole: the same prompt as one string.
            content: the texts in it that come from data.
            start: ids before the string's own.

        Raises:
            ModelError: they differ, so this tokenizer merges across the places where prompts are cut.
        """
        if any(marker in text for marker in self.special_ids for text in content):
            return  # the whole string would turn the title's marker into a special token; the pieces must not
        if tokens != [*start, *self.tokenizer(whole, add_special_tokens=False).input_ids]:
            raise ModelError(
                f"the tokenizer {type(self.tokenizer).__name__} joins text across the items of a prompt, which "
                "rectune does not support; take a model with a byte-level tokenizer (Qwen, SmolLM, Llama 3)"
            )

    def last_plain_text(self, text: str) -> str:
        """The plain text behind the last special token of a template's text."""
        return self._special.split(text)[-1] if self._special else text


class ChatFrame:
    """What the model's own chat template puts before, between and after the messages.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        with_system: whether the prompt has a system message.

    Attributes:
        before_system, before_user, before_answer: template text, special tokens included. `before_answer` ends
            where the answer begins; for Qwen3 it holds the empty think block, as `enable_thinking=False` makes it.
        end_id: the special token that ends the assistant's turn.

    Raises:
        ModelError: the tokenizer has no chat template, or the template cannot take these roles.
    """

    def __init__(self, tokenizer: Any, with_system: bool) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                "this tokenizer has no chat template; use prompt_format=completion, or take an instruct model"
            )
        messages = [{"role": "system", "content": _SYSTEM}] if with_system else []
        messages.append({"role": "user", "content": _USER})
        prompt = self._render(tokenizer, messages, add_generation_prompt=True)
        full = self._render(tokenizer, [*messages, {"role": "assistant", "content": _ANSWER}], False)
        parts = re.split(f"({_SYSTEM}|{_USER})", prompt)
        order = [_SYSTEM, _USER] if with_system else [_USER]
        if parts[1::2] != order or _ANSWER not in full:
            raise ModelError(
                "the model's chat template does not show a system and a user message once each, in this order; "
                "set system_prompt: '' to leave the system message out, or use prompt_format=completion"
            )
        self.before_system = parts[0] if with_system else ""
        self.before_user = parts[2] if with_system else parts[0]
        self.before_answer = parts[-1]
        self.end_text = full.split(_ANSWER, 1)[1]

    @staticmethod
    def _render(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
                )
            )
        except Exception as error:  # Jinja raises whatever the template asks it to
            raise ModelError(f"the model's chat template refuses these messages: {error}") from error

    def end_id(self, pieces: Pieces) -> int:
        """The first special token behind the answer, or the tokenizer's end of text."""
        for part in pieces._special.split(self.end_text) if pieces._special else []:
            if part in pieces.special_ids:
                return pieces.special_ids[part]
        return end_of_text(pieces)


def end_of_text(pieces: Pieces) -> int:
    """The tokenizer's end-of-text id.

    Raises:
        ModelError: it has none.
    """
    end = pieces.tokenizer.eos_token_id
    if end is None:
        raise ModelError("the tokenizer has no end-of-text token; rectune cannot teach the model to stop")
    return int(end)
