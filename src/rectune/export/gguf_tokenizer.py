"""A byte-level tokenizer as llama.cpp reads it: tokens, merges, marks, and the name of its pre-tokenisation.

llama.cpp cuts text into words by rules that it knows by name, so the name must be that of the tokenizer at hand, and
not that of the model's family: the same model comes with other rules out of other files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rectune.errors import ModelError

_WORDS, _REST = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    (r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
)
_SPLITS = {_WORDS + r"\p{N}" + _REST: "qwen2", _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe"}
"""Rules written as an expression: they differ in how many digits stand together."""
_ADVICE = "use --to merged, and llama.cpp's own converter"


def _steps(definition: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokeniser, which may be a sequence."""
    if definition is None:
        return []
    return list(definition["pretokenizers"]) if definition["type"] == "Sequence" else [definition]


def pre_tokenisation(tokenizer: Any) -> str:
    """llama.cpp's name of a tokenizer's rules for words: gpt-2, smollm, qwen2 or llama-bpe.

    Raises:
        ModelError: they are none of these, or the tokenizer is not of the byte-level BPE family.
    """
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    model, normalizer = definition["model"], definition.get("normalizer")
    *before, last = _steps(definition.get("pre_tokenizer")) or [{"type": "none"}]
    name = None
    if last["type"] == "ByteLevel" and not last["add_prefix_space"]:
        kinds = [step["type"] for step in before]
        if not kinds and last["use_regex"]:
            name = "gpt-2"
        elif kinds == ["Digits"] and before[0]["individual_digits"] and last["use_regex"]:
            name = "smollm"
        elif kinds == ["Split"] and before[0]["behavior"] == "Isolated" and not last["use_regex"]:
            name = _SPLITS.get(before[0]["pattern"].get("Regex"))
    plain = model["type"] == "BPE" and not model.get("byte_fallback") and not model.get("dropout")
    if name is None or not plain or (normalizer is not None and normalizer["type"] != "NFC"):
        raise ModelError(
            f"--to gguf: llama.cpp's rules for words are not known to be those of {type(tokenizer).__name__}; {_ADVICE}"
        )
    if bool(model.get("ignore_merges")) != (name == "llama-bpe"):
        raise ModelError(f"--to gguf: this tokenizer merges otherwise than llama.cpp's {name} does; {_ADVICE}")
    return name


def add_tokenizer(writer: Any, tokenizer: Any, folder: Path, rows: int, begins: bool) -> None:
    """Write a tokenizer and its chat template into a GGUF.

    Args:
        writer: a `gguf.GGUFWriter`.
        tokenizer: the export's.
        folder: where it is saved.
        rows: of the model's embeddings, which may be more than the tokenizer has tokens.
        begins: whether the tokenizer puts a marker before any text by itself.

    Raises:
        ModelError: see `pre_tokenisation`.
    """
    from gguf import SpecialVocab, TokenType

    special = tokenizer.added_tokens_decoder
    known = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for index in range(rows):
        tokens.append(known.get(index, f"[PAD{index}]"))
        if index not in known:
            types.append(TokenType.UNUSED)
        elif index in special:
            types.append(TokenType.CONTROL if special[index].special else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenisation(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    vocabulary = SpecialVocab(folder, load_merges=True, n_vocab=rows)
    vocabulary.add_special_token = {"bos": begins, "eos": False}
    vocabulary.add_to_gguf(writer, quiet=True)
