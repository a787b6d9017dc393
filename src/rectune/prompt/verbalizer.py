"""Label words and the tokens that stand for them where the answer is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rectune.errors import ModelError


@dataclass(frozen=True)
class Verbalizer:
    """The two label words, their token ids at the answer position, and the token that ends the answer."""

    positive: str
    negative: str
    positive_id: int
    negative_id: int
    end_id: int

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the labels 0, 1, ..."""
        return [self.negative_id, self.positive_id]

    @property
    def words(self) -> list[str]:
        """The words of the labels 0, 1, ..."""
        return [self.negative, self.positive]

    def token(self, label: int) -> int:
        """The token of a label."""
        return self.token_ids[label]

    def word(self, label: int) -> str:
        """The word of a label."""
        return self.words[label]


@dataclass(frozen=True)
class ManyWords(Verbalizer):
    """The words of more than two classes: `negative` and `positive` are labels 0 and 1, and `more` those from 2 on."""

    more: tuple[str, ...]
    more_ids: tuple[int, ...]

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the labels 0, 1, ..."""
        return [self.negative_id, self.positive_id, *self.more_ids]

    @property
    def words(self) -> list[str]:
        """The words of the labels 0, 1, ..."""
        return [self.negative, self.positive, *self.more]


def build_verbalizer(
    positive: str, negative: str, context: str, end_id: int, encode: Callable[[str], list[int]]
) -> Verbalizer:
    """Check that both words are single, distinct tokens right after `context`, and return their ids.

    A word is judged in its context because a tokenizer may merge it with what stands before it; the ids of
    the bare word would then never be the ones the model is asked for.

    Args:
        positive: word for a liked item, with any leading space that the prompt format needs.
        negative: word for an item that is not liked.
        context: the plain text between the last special token of the prompt and the answer.
        end_id: the token that ends an answer.
        encode: plain text to token ids, without special tokens.

    Raises:
        ModelError: a word is several tokens, merges with its context, or both words share a token.
    """
    advice = "choose a shorter, commoner word, for example positive_label=Yes negative_label=No"
    words = {"positive_label": positive, "negative_label": negative}
    ids = {key: _token(f"{key}: {word.strip()!r}", word, context, encode, advice) for key, word in words.items()}
    if ids["positive_label"] == ids["negative_label"]:
        raise ModelError(
            f"positive_label {positive.strip()!r} and negative_label {negative.strip()!r} are the same token "
            f"({ids['positive_label']}) for this model; choose words that differ"
        )
    return Verbalizer(positive.strip(), negative.strip(), ids["positive_label"], ids["negative_label"], end_id)


def build_class_words(
    names: Sequence[str], words: Sequence[str], context: str, end_id: int, encode: Callable[[str], list[int]]
) -> Verbalizer:
    """The same check for the words of two classes or more, in the order of their labels.

    Args:
        names: of the classes, for messages.
        words: of the classes, with any leading space that the prompt format needs.
        context, end_id, encode: as `build_verbalizer` takes them.

    Raises:
        ModelError: a word is several tokens, merges with its context, or shares its token with another.
    """
    advice = "choose a shorter, commoner word for it, a letter say"
    bare = [word.strip() for word in words]
    ids = [
        _token(f"labels: {short!r}, the word of {name!r},", word, context, encode, advice)
        for name, short, word in zip(names, bare, words, strict=True)
    ]
    for at, one in enumerate(ids):
        if one in ids[:at]:
            other = ids.index(one)
            raise ModelError(
                f"labels: {bare[other]!r} of {names[other]!r} and {bare[at]!r} of {names[at]!r} are the same token "
                f"({one}) for this model; choose words that differ"
            )
    if len(ids) == 2:
        return Verbalizer(bare[1], bare[0], ids[1], ids[0], end_id)
    return ManyWords(bare[1], bare[0], ids[1], ids[0], end_id, tuple(bare[2:]), tuple(ids[2:]))


def _token(what: str, word: str, context: str, encode: Callable[[str], list[int]], advice: str) -> int:
    """The one token that a word is right after a context.

    Raises:
        ModelError: it is not one token there.
    """
    before, after = encode(context), encode(context + word)
    if after[: len(before)] != before or len(after) != len(before) + 1:
        alone = encode(word)
        found = "joins the text before it" if len(alone) == 1 else f"is {len(alone)} tokens"
        raise ModelError(f"{what} {found} for this model, where one token of its own is needed; {advice}")
    return after[-1]
