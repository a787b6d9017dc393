"""Label words and the tokens that stand for them where the answer is read."""

from __future__ import annotations

from collections.abc import Callable
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

    def token(self, label: int) -> int:
        """The token of a 0/1 label."""
        return self.positive_id if label else self.negative_id

    def word(self, label: int) -> str:
        """The word of a 0/1 label."""
        return self.positive if label else self.negative


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
    before = encode(context)
    ids = {}
    for key, word in (("positive_label", positive), ("negative_label", negative)):
        after = encode(context + word)
        if after[: len(before)] != before or len(after) != len(before) + 1:
            alone = encode(word)
            found = "joins the text before it" if len(alone) == 1 else f"is {len(alone)} tokens"
            raise ModelError(
                f"{key}: {word.strip()!r} {found} for this model, where one token of its own is needed; "
                "choose a shorter, commoner word, for example positive_label=Yes negative_label=No"
            )
        ids[key] = after[-1]
    if ids["positive_label"] == ids["negative_label"]:
        raise ModelError(
            f"positive_label {positive.strip()!r} and negative_label {negative.strip()!r} are the same token "
            f"({ids['positive_label']}) for this model; choose words that differ"
        )
    return Verbalizer(positive.strip(), negative.strip(), ids["positive_label"], ids["negative_label"], end_id)
