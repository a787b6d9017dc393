"""Streams score as their plain prompts: trees against strings that this file writes and tokenises by itself.

The reference shares nothing with the code under test but the tokenizer and the model's weights: it writes each
prompt as a string, tokenises the whole, and runs it alone, without a mask, through transformers' own forward. Bugs
are then planted, and the same comparison must catch each.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from rectune.config import Config, parse_config
from rectune.model import answers, attention, blocks
from rectune.prompt import encode, forest, windows
from rectune.prompt.encode import EventHistories, encode_stream
from rectune.prompt.pieces import Pieces
from rectune.prompt.stream import StreamPrompts
from rectune.prompt.tree import Trees
from rectune.score import scorer
from rectune.score.scorer import score_trees
from rectune.train.batches import TrainingCollator

CASES = 320
KERNELS = ("sdpa", "eager", blocks.KERNEL)
TOLERANCE = 2e-5
"""Largest difference allowed, in log-odds whose own standard deviation is about 1; 5e-6 was the largest found."""
PLANTED = 30
"""Cases that each planted bug is looked for in."""

TITLES = ["Heat (1995)", "Up!", "L'été 日本", "12 Monkeys", "M*A*S*H", "…And Justice", "(rating 4.0)", "Yes", "No: No",
          "user's last films", "👩‍👧 family", "don't", "x", "Will the user like", "Film 9, The (2001)"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """Random users with ties, and a configuration with little room.

    Attributes:
        seed: of all draws.
        config: prompt keys and `cutoff_len`.
        events, catalog: as `prepare` writes them.
        asked: int64 [answers]; rows to answer, ascending.
        batch: trees per forward pass.
    """

    seed: int
    config: Config
    events: pl.DataFrame
    catalog: pl.DataFrame
    asked: np.ndarray[Any, np.dtype[np.int64]]
    batch: int


def events_of(times: list[list[int]], draw: random.Random) -> pl.DataFrame:
    """Events of users at these times (each ascending), about random items with random ratings."""
    rows: list[tuple[Any, ...]] = []
    for user, mine in enumerate(times):
        for place, time in enumerate(mine):
            rating = draw.choice([1.0, 2.5, 3.0, 4.0, 4.5, 5.0])
            item, ended = str(draw.randrange(len(TITLES))), mine.index(time)
            rows.append((f"u{user}", item, rating, time, int(rating >= 4), "train", place, ended, len(rows)))
    names = ["user_id", "item_id", "rating", "timestamp", "label", "split", "position", "history_end", "row_id"]
    return pl.DataFrame(rows, schema=names, orient="row")


def catalog_of() -> pl.DataFrame:
    return pl.DataFrame({"item_id": [str(number) for number in range(len(TITLES))], "title": TITLES, "genres": "",
                         "year": None})  # fmt: skip


def head_string(config: Config) -> str:
    """What stands before the first line, as Qwen3's template renders it without thinking, written out."""
    if config.prompt_format == "completion":
        return f"{config.stream_header}\n" if config.stream_header else ""
    system = f"<|im_start|>system\n{config.system_prompt}<|im_end|>\n" if config.system_prompt else ""
    asked = f"<|im_start|>user\n{config.stream_header}<|im_end|>\n"
    return f"{system}{asked}<|im_start|>assistant\n<think>\n\n</think>\n\n"


def line_strings(config: Config, events: pl.DataFrame) -> list[tuple[str, str]]:
    """Each event's line up to its cue, and what a later event sees behind it."""
    found = []
    for event in events.iter_rows(named=True):
        word = config.positive_label if event["label"] else config.negative_label
        rating = str(event["rating"]).removesuffix(".0")
        shown = {"label": f" {word}\n", "rating": f" {rating}\n", "nothing": " ?\n"}[config.history_shows]
        found.append((TITLES[int(event["item_id"])] + config.stream_cue, shown))
    return found


def plain_strings(case: Case, trees: Trees) -> list[str]:
    """The plain prompt of every answer: head, the window's strictly earlier events, its own line up to the cue."""
    head, lines = head_string(case.config), line_strings(case.config, case.events)
    rows = case.events.rows(named=True)
    prompts = []
    for row, shown_from in zip(trees.rows.tolist(), trees.shown_from.tolist(), strict=True):
        mine = rows[row]
        earlier = [
            at
            for at in range(shown_from, len(rows))
            if rows[at]["user_id"] == mine["user_id"] and rows[at]["timestamp"] < mine["timestamp"]
        ]
        prompts.append(head + "".join(lines[at][0] + lines[at][1] for at in earlier) + lines[row][0])
    return prompts


def draw_case(seed: int, tokenizer: Any) -> Case:
    draw = random.Random(seed)
    times: list[list[int]] = []
    for _ in range(draw.randint(1, 3)):
        mine = [0]
        for _ in range(draw.randrange(12)):
            mine.append(mine[-1] + draw.choice([0, 0, 1, 5]))
        times.append(mine)
    events = events_of(times, draw)
    values = {
        "prompt_format": draw.choice(["chat", "completion"]),
        "system_prompt": draw.choice(["", "You know films."]),
        "stream_header": draw.choice(["Films, oldest first, and whether they liked each.", "Films:", "Yes or No?", ""]),
        "stream_cue": draw.choice([":", " |", " liked:"]),
        "history_shows": draw.choice(["label", "rating", "label", "nothing"]),
        "window_overlap": draw.choice([0.0, 0.25, 0.6, 0.95]),
    }
    config = parse_config(values, origin="test")
    size = len(tokenizer(head_string(config), add_special_tokens=False).input_ids)
    longest = max(len(tokenizer(line, add_special_tokens=False).input_ids) for line, _ in line_strings(config, events))
    config = config.with_overrides(cutoff_len=max(8, size + longest + draw.choice([0, 5, 20, 60, 400])))
    asked = np.flatnonzero(np.array([draw.random() < 0.8 for _ in range(events.height)]))
    if not len(asked):
        asked = np.array([events.height - 1])
    return Case(seed, config, events, catalog_of(), asked, draw.choice([1, 2, 3, 16]))


def trees_of(case: Case, pieces: Pieces) -> tuple[Trees, StreamPrompts]:
    prompts = StreamPrompts(case.config, pieces)
    histories = EventHistories(case.events, case.catalog, case.config)
    return encode_stream(prompts, histories, case.events, case.asked, case.config.window_overlap), prompts


def packed_scores(model: Any, trees: Trees, words: Any, kernel: str, draw: random.Random) -> np.ndarray[Any, Any]:
    """Log-odds as a training step reads them: several trees a row, collated, masked, answered where they lie."""
    order = list(range(len(trees)))
    draw.shuffle(order)
    packs: list[list[int]] = [[]]
    for tree in order:
        if packs[-1] and draw.random() < 0.4:
            packs.append([])
        packs[-1].append(tree)
    batch = TrainingCollator(trees, words, with_end=False)(packs)
    assert batch["input_ids"].shape == (len(packs), max(int(trees.lengths[pack].sum()) for pack in packs))
    mask = None
    if "run" in batch:
        mask = attention.attention_mask(batch["run"], batch["first"], batch["fork"], kernel, torch.float32)
    with torch.inference_mode():
        hidden = answers.hidden_at(
            model, batch["input_ids"], batch["rows"], batch["positions"], mask, batch.get("position_ids")
        )
        logits = answers.label_logits(model, hidden, words.negative_id, words.positive_id)
    found = np.empty(len(trees.labels))
    found[[at for pack in packs for tree in pack for at in range(*trees.answers(tree).indices(len(found)))]] = (
        (logits[:, 1] - logits[:, 0]).double().numpy()
    )
    return found


class Reference:
    """The plain tokenizer and transformers' own forward on one prompt at a time; equal prompts are run once."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self.model.eval()
        self.tokenizer = tokenizer
        # The label words follow a cue and a space; each is one token of its own.
        (self.yes,), (self.no,) = (tokenizer(word, add_special_tokens=False).input_ids for word in (" Yes", " No"))
        self.known: dict[str, float] = {}

    def __call__(self, prompt: str) -> float:
        if prompt not in self.known:
            ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
            with torch.inference_mode():
                logits = self.model(input_ids=ids).logits[0, -1].double()
            self.known[prompt] = float(logits[self.yes] - logits[self.no])
        return self.known[prompt]


@dataclasses.dataclass
class Bench:
    """Everything that a comparison needs, made once."""

    reference: Reference
    model: Any
    pieces: Pieces
    cases: list[Case]

    def under(self, kernel: str) -> Any:
        """The model under test with one attention kernel."""
        self.model.set_attn_implementation(kernel)
        return self.model

    def differences(self, case: Case, kernels: tuple[str, ...] = KERNELS) -> Iterator[np.ndarray[Any, Any]]:
        """Trees against strings, in log-odds: scored in batches, and packed as training packs."""
        trees, prompts = trees_of(case, self.pieces)
        expected = np.array([self.reference(prompt) for prompt in plain_strings(case, trees)])
        for kernel in kernels:
            model = self.under(kernel)
            yield score_trees(model, trees, prompts.verbalizer, case.batch, kernel) - expected
            yield packed_scores(model, trees, prompts.verbalizer, kernel, random.Random(case.seed)) - expected


@pytest.fixture(scope="module")
def bench(tiny_qwen3: Path, qwen3_tokenizer: Any) -> Iterator[Bench]:
    from transformers import AutoModelForCausalLM

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    blocks.register()
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32).eval()
    cases = [draw_case(seed, qwen3_tokenizer) for seed in range(CASES)]
    yield Bench(Reference(tiny_qwen3, qwen3_tokenizer), model, Pieces(qwen3_tokenizer), cases)
    torch.set_num_threads(before)


def test_trees_score_as_their_plain_prompts(bench: Bench, record_property: Callable[[str, object], None]) -> None:
    largest, count, branches, trees_seen, expected = 0.0, 0, 0, 0, []
    for case in bench.cases:
        trees, _ = trees_of(case, bench.pieces)
        assert trees.rows.tolist() == case.asked.tolist()
        branches += len(trees.branch_at)
        trees_seen += len(trees)
        for found in bench.differences(case):
            count += len(found)
            worst = float(np.abs(found).max())
            assert worst < TOLERANCE, f"case {case.seed}: {worst:.3g} in log-odds"
            largest = max(largest, worst)
        expected += [bench.reference(prompt) for prompt in plain_strings(case, trees)]
    spread = float(np.std(expected))
    record_property("cases", len(bench.cases))
    record_property("scores", count)
    record_property("largest difference in log-odds", largest)
    print(
        f"\n{len(bench.cases)} cases, {trees_seen:,} trees, {branches:,} branches, {count:,} scores against "
        f"{len(bench.reference.known):,} plain prompts: largest difference {largest:.3g} in log-odds "
        f"(their standard deviation is {spread:.3g})"
    )
    # The cases are what they claim to be: many windows, many ties, and scores that differ.
    assert len(bench.cases) >= 300 and branches > 1000 and trees_seen > 2 * len(bench.cases) and spread > 0.3


# --- planted bugs ---

Plant = Callable[[pytest.MonkeyPatch], None]


def altered_trees(change: Callable[[Trees], Trees], patch: pytest.MonkeyPatch) -> None:
    """Change what the layout hands on."""
    made = windows._trees
    patch.setattr(windows, "_trees", lambda *values: change(made(*values)))


def trunk_lengths(trees: Trees) -> np.ndarray[Any, Any]:
    """Length of the trunk that each branch leaves."""
    counts = np.diff(trees.branch_offsets)
    return np.repeat(trees.branch_at[np.minimum(trees.branch_offsets[:-1], len(trees.branch_at) - 1)], counts)


def with_forks_moved(step: int, trees: Trees) -> Trees:
    """Branches that see `step` tokens more of their trunk, as far as it goes."""
    moved = np.clip(trees.branch_fork + step, 0, trunk_lengths(trees)).astype(np.int32)
    return dataclasses.replace(trees, branch_fork=moved)


def with_answers_behind_labels(trees: Trees) -> Trees:
    """Answers of the trunk read one token later, where their own label already stands."""
    on_trunk = np.ones(len(trees.answer_at), dtype=bool)
    for tree in range(len(trees)):
        on_trunk[trees.answers(tree)] = trees.runs(tree)[0][trees.answer_at[trees.answers(tree)]] == 0
    return dataclasses.replace(trees, answer_at=(trees.answer_at + on_trunk).astype(np.int32))


def branch_positions_are_places(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Trees, "depths", lambda self, index: np.arange(int(self.lengths[index])))


def moments_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """`history_end` replaced by the position: every event follows the one before it."""
    made = windows.Timelines
    patch.setattr(
        encode, "Timelines", lambda order, first, _end, *rest: made(order, first, np.arange(len(order)), *rest)
    )


def mask_changed(
    change: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]], patch: pytest.MonkeyPatch
) -> None:
    """Change what the mask builder is told, wherever it is called from."""
    made = attention.attention_mask

    def changed(run: torch.Tensor, first: torch.Tensor, fork: torch.Tensor, kernel: str, dtype: torch.dtype) -> Any:
        return made(*change(run, first, fork), kernel, dtype)

    patch.setattr(attention, "attention_mask", changed)
    patch.setattr(scorer, "attention_mask", changed)


def the_next_token_is_seen(patch: pytest.MonkeyPatch) -> None:
    """A mask that is off by one: on the trunk a cue sees its own label."""
    made = attention.attention_mask

    def changed(*values: Any) -> torch.Tensor:
        mask: torch.Tensor = made(*values).clone()
        at = torch.arange(mask.shape[-1] - 1)
        mask[:, :, at, at + 1] = 0
        return mask

    patch.setattr(attention, "attention_mask", changed)
    patch.setattr(scorer, "attention_mask", changed)


def one_run_a_tree(
    run: torch.Tensor, first: torch.Tensor, fork: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.where(run < 0, run, first), first, fork


def one_trunk_a_row(
    run: torch.Tensor, first: torch.Tensor, fork: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Trunks of one row see those before them; branches stay as they are."""
    return torch.where((run == run.gather(1, first)) & (run >= 0), 0, run), first, fork


def forks_forget_where_their_tree_begins(patch: pytest.MonkeyPatch) -> None:
    """A fork counted from the row in place of the tree."""
    made = forest.lay_out

    def changed(*values: Any) -> forest.Forest:
        found = made(*values)
        return dataclasses.replace(found, fork=np.where(found.fork > found.first, found.fork - found.first, found.fork))

    patch.setattr("rectune.train.batches.lay_out", changed)


BUGS: dict[str, Plant] = {
    "tied events see each other: forks moved a line on": partial(altered_trees, partial(with_forks_moved, 8)),
    "tied events see each other: forks at the trunk's end": partial(altered_trees, partial(with_forks_moved, 1 << 20)),
    "tied events see each other: one run a tree": partial(mask_changed, one_run_a_tree),
    "forks are one token late": partial(altered_trees, partial(with_forks_moved, 1)),
    "forks are one token early": partial(altered_trees, partial(with_forks_moved, -1)),
    "branches do not see their trunk": partial(mask_changed, lambda run, first, _fork: (run, first, first)),
    "branches' positions are places, not depths": branch_positions_are_places,
    "history_end is the position": moments_are_ignored,
    "an answer is read behind its own label": partial(altered_trees, with_answers_behind_labels),
    "the next token is seen": the_next_token_is_seen,
}
PACKING_BUGS: dict[str, Plant] = {
    "packed trees see each other: their trunks are one run": partial(mask_changed, one_trunk_a_row),
    "packed trees see each other: forks reach back to the row's beginning": partial(
        mask_changed, lambda run, first, fork: (run, torch.zeros_like(first), fork)
    ),
    "packed trees see each other: forks are counted from the row": forks_forget_where_their_tree_begins,
}


def planted(bench: Bench, plant: Plant | None) -> tuple[float, float]:
    """Largest differences over some cases with a bug in place: of scores, and of packed trees."""
    scored, packed = 0.0, 0.0
    with pytest.MonkeyPatch.context() as patch:
        if plant is not None:
            plant(patch)
        for case in bench.cases[:PLANTED]:
            alone, together = bench.differences(case, ("sdpa",))
            scored, packed = max(scored, np.abs(alone).max()), max(packed, np.abs(together).max())
    return scored, packed


def test_the_cases_of_the_planted_bugs_pass_without_them(bench: Bench) -> None:
    assert max(planted(bench, None)) < TOLERANCE


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(bench: Bench, name: str) -> None:
    found = planted(bench, BUGS[name])
    print(f"\n{name}: {found[0]:.2g} scored, {found[1]:.2g} packed")
    assert min(found) > 1000 * TOLERANCE


@pytest.mark.parametrize("name", PACKING_BUGS)
def test_a_planted_bug_of_packing_is_caught(bench: Bench, name: str) -> None:
    alone, packed = planted(bench, PACKING_BUGS[name])
    print(f"\n{name}: {alone:.2g} scored, {packed:.2g} packed")
    assert packed > 1000 * TOLERANCE
    assert alone < TOLERANCE  # one tree a row: this bug is packing's alone
