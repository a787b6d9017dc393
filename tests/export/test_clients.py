"""Clients that keep what prompts share answer as clients that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import silent

from rectune.export.clients import _causal, _shared
from rectune.export.pairs import pairs_of
from rectune.export.prompt_template import template_of
from rectune.score.open_run import open_run


@given(st.lists(st.integers(0, 2), min_size=1), st.lists(st.integers(0, 2)))
def test_what_is_shared_is_the_longest_common_beginning_short_of_the_last_token(
    ids: list[int], before: list[int]
) -> None:
    count = _shared(ids, before)
    assert ids[:count] == before[:count] and count < len(ids)
    assert count == len(ids) - 1 or count == len(before) or ids[count] != before[count]


def test_prompts_in_any_order_get_the_same_answers(stream_run: Path) -> None:
    run = open_run(stream_run, [], silent)
    texts = pairs_of(run, template_of(run.prompts), silent).texts
    words, tokenizer = run.prompts.verbalizer, run.loaded.tokenizer
    kept = _causal(run.model, tokenizer, texts, words)
    alone = np.array([_causal(run.model, tokenizer, [text], words)[0] for text in texts])
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = _causal(run.model, tokenizer, [texts[at] for at in order], words)
    assert np.abs(kept - alone).max() < 1e-4 and np.abs(shuffled - kept[order]).max() < 1e-4
    assert len(set(np.round(alone, 3))) > 5
