"""Run branches after their trunk: a history's keys and values are computed once and serve all its candidates.

A pass is one row of tokens: trunks, each followed by its branches. No token is padded in the linear layers, which
are most of the work. Attention is computed for each trunk apart, in two parts whose products share one softmax: the
queries of all branches against the trunk's keys, as one matrix product, and each branch against itself. The same
idea, with the two parts merged afterwards, is Hydragen (Juravsky et al. 2024, arXiv 2402.05099).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from rectune.errors import ModelError
from rectune.model.answers import backbone_of

KERNEL = "rectune_prefix"
"""Name under which transformers knows this kernel."""
_QUERIES = 128
"""Queries of a branch that are taken together; the keys behind them are skipped."""
CELLS = 1 << 20
"""Entries of the attention matrix per head that are held at once."""


@dataclass
class Keys:
    """Keys and values of a trunk, as the attention of each layer sees them.

    Attributes:
        layers: for each layer key and value, [key heads, tokens, dim].
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.layers[0][0].shape[1]) if self.layers else 0

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(part.numel() * part.element_size() for pair in self.layers for part in pair)

    def first(self, length: int) -> Keys:
        """The keys of the first tokens; a view."""
        return Keys([(key[:, :length], value[:, :length]) for key, value in self.layers])


@dataclass(frozen=True)
class Group:
    """A trunk and its branches.

    Attributes:
        kept: keys of the trunk's beginning, computed earlier; None when there are none.
        trunk: token ids of the rest of the trunk.
        branches: token ids of each branch; the trunk and the branches may be empty, but not both.
        keep: whether the whole trunk's keys are wanted back.
    """

    kept: Keys | None
    trunk: Sequence[int]
    branches: Sequence[Sequence[int]]
    keep: bool = False

    @property
    def depth(self) -> int:
        """Tokens of the whole trunk."""
        return (0 if self.kept is None else len(self.kept)) + len(self.trunk)

    @property
    def tokens(self) -> int:
        """Tokens that a pass has to compute."""
        return len(self.trunk) + sum(map(len, self.branches))


@dataclass(frozen=True)
class _Span:
    """Where a group lies in the row.

    Attributes:
        start, fork, stop: its trunk is `start` to before `fork`, its branches go on to before `stop`.
        blocks: branches of like length together: int64 [branches, width], places in the row, a branch's last place
            repeated behind its end.
    """

    group: Group
    start: int
    fork: int
    stop: int
    blocks: list[torch.Tensor]


@dataclass(frozen=True)
class _Plan:
    """What the attention of each layer is told; the keys that it gives back."""

    spans: list[_Span]
    found: list[Keys | None]


def _blocks(branches: Sequence[Sequence[int]], begin: int, depth: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Places of branches, cut so that little is padded and the attention matrix stays small."""
    lengths = torch.tensor([len(branch) for branch in branches])
    starts = begin + torch.cumsum(lengths, 0) - lengths
    order = torch.argsort(lengths, descending=True, stable=True)
    at = 0
    while at < len(order):
        width = int(lengths[order[at]])
        most = max(1, CELLS // (width * (depth + width)))
        stop = at + 1
        # A new block where padding would be more than half of a branch, unless few branches would be left alone.
        while stop < len(order) and stop - at < most and (2 * int(lengths[order[stop]]) >= width or stop - at < 8):
            stop += 1
        chosen = order[at:stop]
        places = torch.arange(width).expand(len(chosen), width)
        yield (starts[chosen, None] + torch.minimum(places, lengths[chosen, None] - 1)).to(device)
        at = stop


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
) -> torch.Tensor:
    """Causal attention of branches to themselves, and to all of the keys before them.

    Args:
        query: [key heads, branches, groups, width, dim]; `groups` queries share a key head.
        key, value: [key heads, branches, width, dim].
        before: key and value of the trunk, [key heads, depth, dim]; None without one.
        scale: of the products.

    Returns:
        [key heads, branches, groups, width, dim].
    """
    heads, branches, groups, width, dim = query.shape
    query = query * scale
    parts = []
    for start in range(0, width, _QUERIES):
        stop = min(start + _QUERIES, width)
        asked = query[:, :, :, start:stop].reshape(heads, branches, groups * (stop - start), dim)
        own = (asked @ key[:, :, :stop].transpose(-1, -2)).view(heads, branches, groups, stop - start, stop)
        late = torch.ones(stop - start, stop, dtype=torch.bool, device=own.device).triu(start + 1)
        own = own.masked_fill(late, float("-inf")).view(heads, branches, -1, stop)
        if before is None:
            answer = torch.softmax(own, dim=-1) @ value[:, :, :stop]
        else:
            depth = before[0].shape[1]
            flat = asked.reshape(heads, -1, dim)
            shared = (flat @ before[0].transpose(-1, -2)).view(heads, branches, -1, depth)
            weights = torch.softmax(torch.cat([shared, own], dim=-1), dim=-1)
            answer = weights[..., depth:] @ value[:, :, :stop]
            answer += (weights[..., :depth].reshape(heads, -1, depth) @ before[1]).view_as(answer)
        parts.append(answer.view(heads, branches, groups, stop - start, dim))
    return torch.cat(parts, dim=3) if len(parts) > 1 else parts[0]


def _forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    plan: _Plan | None = None,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """The form in which transformers calls an attention kernel: query [1, heads, tokens, dim], and so on."""
    unknown = [name for name in ("s_aux", "softcap", "position_bias") if extra.get(name) is not None]
    if plan is None or dropout or unknown or query.shape[0] != 1:
        raise ModelError(f"attention: {KERNEL} cannot serve this model ({', '.join(unknown) or 'it hands on no plan'})")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    heads, tokens, dim = key.shape[1], key.shape[2], key.shape[3]
    groups = query.shape[1] // heads
    queries, keys, values = query[0].view(heads, groups, tokens, dim), key[0], value[0]
    output = torch.empty_like(queries)
    for span, kept in zip(plan.spans, plan.found, strict=True):
        deepest = span.group.depth + max(map(len, span.group.branches), default=0)
        if sliding_window is not None and deepest > sliding_window:
            raise ModelError(f"attention: {KERNEL} has no sliding window, and this model's is {sliding_window}")
        before = span.group.kept.layers[module.layer_idx] if span.group.kept else None
        trunk = slice(span.start, span.fork)
        if span.fork > span.start:
            new = (keys[:, trunk], values[:, trunk])
            output[:, :, trunk] = _trunk(queries[:, :, trunk], *new, before, scale)
            before = new if before is None else (torch.cat([before[0], new[0]], 1), torch.cat([before[1], new[1]], 1))
        if kept is not None and before is not None:
            kept.layers.append((before[0].clone(), before[1].clone()))
        for block in span.blocks:
            flat = block.flatten()
            asked = queries[:, :, flat].view(heads, groups, *block.shape, dim).transpose(1, 2)
            own, its = (part[:, flat].view(heads, *block.shape, dim) for part in (keys, values))
            answer = _attend(asked, own, its, before, scale).transpose(1, 2).reshape(heads, groups, -1, dim)
            # A place that stands for padding is written by its own branch's last token again, and again later.
            output[:, :, flat] = _repeat_last(answer, block)
    return output.reshape(1, heads * groups, tokens, dim).transpose(1, 2).contiguous(), None


def _repeat_last(answer: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """The answers with those of padded places replaced by that of the place they repeat."""
    lengths = (block[:, 1:] != block[:, :-1]).sum(dim=1)  # of each branch, less one
    places = torch.minimum(torch.arange(block.shape[1], device=block.device), lengths[:, None])
    index = (torch.arange(len(block), device=block.device)[:, None] * block.shape[1] + places).flatten()
    return answer[:, :, index]


def _trunk(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
) -> torch.Tensor:
    """Attention of a trunk's new tokens: query [key heads, groups, tokens, dim], key and value without groups."""
    if before is None and query.device.type == "cuda":
        heads, groups, tokens, dim = query.shape
        found = torch.nn.functional.scaled_dot_product_attention(
            query.reshape(1, heads * groups, tokens, dim), key[None], value[None], is_causal=True, scale=scale,
            enable_gqa=True,
        )  # fmt: skip
        return found.view(heads, groups, tokens, dim)
    return _attend(query[:, None], key[:, None], value[:, None], before, scale)[:, 0]


def register() -> None:
    """Make the kernel known to transformers; it needs no mask."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(KERNEL, _forward)
    AttentionMaskInterface.register(KERNEL, lambda *_arguments, **_named: None)


@contextmanager
def _attending(backbone: Any) -> Iterator[None]:
    """While open, the model's layers call this kernel."""
    usual = backbone.config._attn_implementation
    register()
    backbone.config._attn_implementation = KERNEL
    try:
        yield
    finally:
        backbone.config._attn_implementation = usual


def prefix_problem(model: Any, longest: int) -> str | None:
    """Why a model's attention cannot be replaced by this kernel for prompts of up to `longest` tokens, or None."""
    config = backbone_of(model)[1].config
    kinds = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    other = kinds - {"full_attention", "sliding_attention"}
    if other:
        return f"it has layers of {', '.join(sorted(other))}"
    slides = "sliding_attention" in kinds or (not kinds and getattr(config, "use_sliding_window", True))
    if window and slides and window < longest:
        return f"its sliding window of {window} tokens is shorter than cutoff_len={longest}"
    return None


def run_groups(model: Any, groups: Sequence[Group]) -> tuple[torch.Tensor, list[Keys | None]]:
    """Last hidden states at the ends of all branches, and the trunks' keys where they are wanted.

    Args:
        model: a causal language model with rotary or other positions taken from `position_ids`, with or without an
            adapter, in evaluation mode.
        groups: computed in one pass; at least one has a token.

    Returns:
        [branches, hidden] in the model's dtype, in order; for each group its trunk's keys, or None.

    Raises:
        ModelError: the model's attention cannot be replaced.
    """
    bare, backbone = backbone_of(model)
    device = next(backbone.parameters()).device
    spans: list[_Span] = []
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    for group in groups:
        start, fork, depth = len(ids), len(ids) + len(group.trunk), group.depth
        ids += group.trunk
        positions += range(depth - len(group.trunk), depth)
        for branch in group.branches:
            ids += branch
            positions += range(depth, depth + len(branch))
            ends.append(len(ids))
        blocks = list(_blocks(group.branches, fork, depth, device)) if group.branches else []
        spans.append(_Span(group, start, fork, len(ids), blocks))
    plan = _Plan(spans, [Keys() if group.keep else None for group in groups])
    mixed = torch.autocast(device.type, bare.dtype, enabled=bare.dtype != torch.float32)
    with mixed, _attending(backbone):
        output = backbone(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            plan=plan,
        )
    return output.last_hidden_state[0, torch.tensor(ends, dtype=torch.int64, device=device) - 1], plan.found
