"""Fitted baselines as safetensors files: the same content gives the same bytes, and damage is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, npt.NDArray[Any]]
_DIGEST = "sha256"


def _in_order(content: bytes) -> bytes:
    """A safetensors file whose header has its keys in order; the library shuffles texts from call to call."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _digest(tensors: Tensors, texts: Mapping[str, str]) -> str:
    """SHA-256 of what a file holds: names, types, shapes and bytes of its tensors, and its texts."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    digest.update(json.dumps({name: text for name, text in texts.items() if name != _DIGEST}, sort_keys=True).encode())
    return digest.hexdigest()


def to_file(tensors: Tensors, texts: Mapping[str, str]) -> bytes:
    """Tensors and texts as one file, with a digest of both."""
    from safetensors.numpy import save

    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return _in_order(save(whole, {**texts, _DIGEST: _digest(whole, texts)}))


def from_file(content: bytes) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Tensors and texts of what `to_file` wrote.

    Raises:
        ValueError: it is no such file, or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        texts = json.loads(content[8 : 8 + length])["__metadata__"]
        same = texts[_DIGEST] == _digest(tensors, texts)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"it holds no fitted baseline ({error})") from error
    if not same:
        raise ValueError("it is damaged: its content is not what it was saved with")
    return tensors, texts
