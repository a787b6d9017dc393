"""Branches after a trunk give what each gives as a plain prompt run alone, however they are grouped, cut or kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rectune.errors import ModelError
from rectune.model.prefix import KERNEL, Group, Keys, prefix_problem, run_groups

TOLERANCE = 2e-5
tokens = st.integers(min_value=0, max_value=330)
branches = st.lists(st.lists(tokens, min_size=1, max_size=9), min_size=1, max_size=12)
asked = st.lists(
    st.tuples(st.lists(tokens, max_size=40), branches, st.integers(min_value=0, max_value=40)), min_size=1, max_size=4
)
QUIETLY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def model(tiny_qwen3: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def llama() -> Any:
    """Another architecture: no norms of queries and keys, as many key heads as query heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    shape = LlamaConfig(vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                        num_attention_heads=4, num_key_value_heads=4, initializer_range=0.2)  # fmt: skip
    return LlamaForCausalLM(shape).eval()


def alone(model: Any, prompt: Sequence[int]) -> torch.Tensor:
    """The last hidden state of one prompt, by the model's own forward."""
    with torch.inference_mode():
        hidden: torch.Tensor = model.model(input_ids=torch.tensor([list(prompt)])).last_hidden_state[0, -1]
    return hidden


def check(model: Any, groups: list[Group], trunks: list[list[int]]) -> list[Keys | None]:
    with torch.inference_mode():
        hidden, kept = run_groups(model, groups)
    wanted = [
        alone(model, [*trunk, *branch])
        for group, trunk in zip(groups, trunks, strict=True)
        for branch in group.branches
    ]
    assert len(hidden) == len(wanted)
    for mine, other in zip(hidden, wanted, strict=True):
        assert torch.allclose(mine, other, atol=TOLERANCE, rtol=TOLERANCE), float((mine - other).abs().max())
    return kept


@given(asked=asked)
@QUIETLY
def test_branches_are_their_plain_prompts(model: Any, asked: list[Any]) -> None:
    check(model, [Group(None, trunk, leaves) for trunk, leaves, _ in asked], [trunk for trunk, _, _ in asked])


@given(asked=asked)
@QUIETLY
def test_branches_after_kept_keys_are_their_plain_prompts(model: Any, asked: list[Any]) -> None:
    """A trunk is computed up to some place and kept; the rest and the branches come in another pass."""
    groups = []
    for trunk, leaves, at in asked:
        begin = trunk[: min(at, len(trunk))]
        kept = None
        if begin:
            (kept,) = check(model, [Group(None, begin, [], keep=True)], [begin])
            assert kept is not None and len(kept) == len(begin)
        groups.append(Group(kept, trunk[len(begin) :], leaves, keep=True))
    found = check(model, groups, [trunk for trunk, _, _ in asked])
    # The keys of a trunk made in two passes serve as those made in one.
    again = [Group(keys, [], group.branches) for keys, group in zip(found, groups, strict=True)]
    check(model, again, [trunk for trunk, _, _ in asked])


@given(asked=asked)
@QUIETLY
def test_another_architecture_agrees_too(llama: Any, asked: list[Any]) -> None:
    check(llama, [Group(None, trunk, leaves) for trunk, leaves, _ in asked], [trunk for trunk, _, _ in asked])


def test_a_trunk_longer_than_a_block_of_queries_and_many_branches_agree(model: Any) -> None:
    trunk = [(7 * at) % 330 for at in range(300)]
    leaves = [[(11 * at + width) % 330 for at in range(width)] for width in (1, 2, 150, 3, 3, 3, 30, 4, 5, 6, 7, 8, 9)]
    check(model, [Group(None, trunk, leaves)], [trunk])


def test_the_beginning_of_kept_keys_is_the_keys_of_the_beginning(model: Any) -> None:
    trunk = list(range(20))
    with torch.inference_mode():
        _, (long,) = run_groups(model, [Group(None, trunk, [[1]], keep=True)])
    assert long is not None
    check(model, [Group(long.first(12), [99], [[5, 6]])], [[*trunk[:12], 99]])
    # Two layers, key and value, 2 heads, 20 tokens, 8 numbers of 4 bytes.
    assert long.size == 2 * 2 * 2 * 20 * 8 * 4


def test_the_models_own_kernel_is_put_back(model: Any) -> None:
    with torch.inference_mode():
        run_groups(model, [Group(None, [1, 2], [[3]])])
    assert model.config._attn_implementation == "eager" != KERNEL


@pytest.mark.parametrize("bug", ["position", "sibling", "trunk"])
def test_planted_bugs_are_caught(model: Any, bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rectune.model import prefix

    real = prefix._attend
    if bug == "position":
        real_forward = model.model.forward  # positions go on from branch to branch

        def running_on(input_ids: Any, position_ids: Any, **named: Any) -> Any:
            return real_forward(input_ids=input_ids, position_ids=torch.arange(input_ids.shape[1])[None], **named)

        monkeypatch.setattr(model.model, "forward", running_on)
    elif bug == "sibling":  # a branch sees the keys of the one before it

        def shifted(query: Any, key: Any, value: Any, *rest: Any) -> Any:
            return real(query, key.roll(1, dims=1), value.roll(1, dims=1), *rest)

        monkeypatch.setattr(prefix, "_attend", shifted)
    else:  # the newest token of the trunk is not seen

        def blind(query: Any, key: Any, value: Any, before: Any, scale: float) -> Any:
            return real(query, key, value, None if before is None else tuple(part[:, :-1] for part in before), scale)

        monkeypatch.setattr(prefix, "_attend", blind)
    with pytest.raises(AssertionError):
        with torch.inference_mode():
            hidden, _ = run_groups(model, [Group(None, [5, 6, 7, 8], [[1, 2], [3, 4]])])
        monkeypatch.undo()
        for mine, branch in zip(hidden, ([1, 2], [3, 4]), strict=True):
            assert torch.allclose(mine, alone(model, [5, 6, 7, 8, *branch]), atol=TOLERANCE, rtol=TOLERANCE)


def test_a_sliding_window_shorter_than_the_prompt_is_refused(tiny_qwen3: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        tiny_qwen3, dtype=torch.float32, use_sliding_window=True, sliding_window=8, max_window_layers=0,
        layer_types=["sliding_attention", "sliding_attention"],
    ).eval()  # fmt: skip
    with torch.inference_mode(), pytest.raises(ModelError, match="no sliding window, and this model's is 8"):
        run_groups(model, [Group(None, list(range(9)), [[1]])])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, None),
        ({"layer_types": ["full_attention"] * 2, "sliding_window": 8}, None),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64}, None),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 63}, "sliding window of 63 tokens"),
        ({"sliding_window": 63}, "sliding window of 63 tokens is shorter than cutoff_len=64"),
        ({"sliding_window": 63, "use_sliding_window": False}, None),
        ({"layer_types": ["linear_attention", "full_attention"]}, "it has layers of linear_attention"),
    ],
)
def test_models_that_need_another_kernel_are_known_by_their_configuration(
    values: dict[str, Any], problem: str | None
) -> None:
    backbone = SimpleNamespace(config=SimpleNamespace(**values))
    found = prefix_problem(SimpleNamespace(base_model_prefix="model", model=backbone), 64)
    assert found is None if problem is None else problem in str(found)
