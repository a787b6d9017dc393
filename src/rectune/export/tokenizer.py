"""The tokenizer of an export: the base model's, with a chat template that writes the prompts of training by itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rectune.errors import ModelError

_NO_THINKING = "{%- set enable_thinking = false -%}\n"
_PAIR = "{%- for message in messages -%}{{- message['content'] -}}{%- endfor -%}"
"""The chat template of a classifier: sentence-transformers gives query and document to it, one message each, and this
writes the one behind the other. With the model's own it refuses pairs; without any it would tokenise them apart."""
_ASKED = [{"role": "user", "content": "x"}]


def _rendered(tokenizer: Any, **more: Any) -> str:
    return str(tokenizer.apply_chat_template(_ASKED, tokenize=False, add_generation_prompt=True, **more))


def export_tokenizer(tokenizer: Any) -> Any:
    """A copy whose chat template leaves thinking out unasked.

    Models are trained behind Qwen3's empty think block, which its template writes only for clients that say
    `enable_thinking=False`. Most do not, and their prompt would be another than the trained one.
    """
    found = copy.deepcopy(tokenizer)
    if found.chat_template and _rendered(found) != _rendered(found, enable_thinking=False):
        found.chat_template = _NO_THINKING + found.chat_template
    return found


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save the tokenizer of a whole model."""
    export_tokenizer(tokenizer).save_pretrained(folder)


def save_classifier_tokenizer(tokenizer: Any, start: str, texts: Sequence[str], folder: Path) -> int:
    """Save the tokenizer of a classifier.

    Args:
        tokenizer: the base model's.
        start: the marker that it puts before any text by itself; templates have to write it.
        texts: prompts, none of which may end with the padding token: the last token that is none is read.
        folder: where to.

    Returns:
        The padding token.

    Raises:
        ModelError: it has no special token to pad with.
    """
    last = {tokenizer(text).input_ids[-1] for text in texts}
    known = [tokenizer.pad_token_id, tokenizer.eos_token_id, *sorted(tokenizer.all_special_ids)]
    fit = [token for token in known if token is not None and token not in last]
    if not fit:
        raise ModelError("the tokenizer has no special token to pad with that no prompt ends with; use --to merged")
    found = copy.deepcopy(tokenizer)
    found.pad_token_id = fit[0]
    found.chat_template = start + _PAIR
    found.save_pretrained(folder)
    return int(fit[0])
