"""Fitted baselines as files: what was put in comes out, the same gives the same bytes, and damage is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.baselines.saved import from_file, to_file

TENSORS = {"b": np.arange(6.0).reshape(2, 3).T, "a": np.array([1, 2], dtype=np.int32), "none": np.zeros((0, 3))}
TEXTS = {"items": '["é \\"quoted\\""]', "empty": ""}


def test_tensors_and_texts_come_back_with_a_digest() -> None:
    tensors, texts = from_file(to_file(TENSORS, TEXTS))
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    assert {name: texts[name] for name in TEXTS} == TEXTS and len(texts["sha256"]) == 64


def test_the_same_content_gives_the_same_bytes_in_whatever_order() -> None:
    content = to_file(TENSORS, TEXTS)
    turned = to_file(dict(reversed(list(TENSORS.items()))), dict(reversed(list(TEXTS.items()))))
    assert turned == content == to_file(*from_file(content))


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_cut_or_changed_file_is_refused(data: st.DataObject) -> None:
    content = to_file(TENSORS, TEXTS)
    at = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(ValueError, match="it holds no fitted baseline"):
        from_file(content[:at])
    changed = bytearray(content)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        tensors, texts = from_file(bytes(changed))
    except ValueError:
        return
    # What is left are spaces between the parts of the JSON in front.
    assert to_file(tensors, texts) == content


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 64, b"no such file, but long enough to be one" * 9])
def test_other_content_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="it holds no fitted baseline"):
        from_file(content)


def test_a_file_without_a_digest_is_refused() -> None:
    from safetensors.numpy import save

    with pytest.raises(ValueError, match=r"it holds no fitted baseline \('sha256'\)"):
        from_file(save({"a": np.zeros(2)}, {"items": "[]"}))
