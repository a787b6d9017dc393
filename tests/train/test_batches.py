"""Training batches, worked out by hand."""

from __future__ import annotations

import torch

from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer
from rectune.train.batches import TrainingCollator

WORDS = Verbalizer("Yes", "No", positive_id=91, negative_id=90, end_id=99)
TREES = Trees.of_prompts([[1, 2, 3], [4, 5]], labels=[1, 0], rows=[0, 1], shown_from=[0, 0], prior=[0.5, -2.0])


def test_one_prompt_a_row_has_its_answer_behind_it_and_padding_on_the_right() -> None:
    batch = TrainingCollator(TREES, WORDS, with_end=True)([[0], [1]])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 91, 99], [4, 5, 90, 99, 0]]
    assert batch["rows"].tolist() == [0, 1]
    assert batch["positions"].tolist() == [2, 1]
    assert batch["labels"].tolist() == [91, 90]
    assert batch["prior"].tolist() == [0.5, -2.0]
    assert set(batch) == {"input_ids", "rows", "positions", "labels", "prior", "trees"}
    assert batch["trees"].tolist() == [0, 1]


def test_packed_prompts_keep_their_own_positions_and_number() -> None:
    batch = TrainingCollator(TREES, WORDS, with_end=True)([[1, 0], [1]])
    assert batch["input_ids"].tolist() == [[4, 5, 90, 99, 1, 2, 3, 91, 99], [4, 5, 90, 99, 0, 0, 0, 0, 0]]
    assert batch["positions"].tolist() == [1, 6, 1]
    assert batch["rows"].tolist() == [0, 0, 1]
    assert batch["labels"].tolist() == [90, 91, 90]
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert batch["prior"].tolist() == [-2.0, 0.5, -2.0]
    assert batch["trees"].tolist() == [1, 0, 1]
    assert batch["run"].tolist() == [[0] * 4 + [1] * 5, [0] * 4 + [-1] * 5]
    # A token sees from `first` to before `fork` besides its own run: here nothing.
    assert batch["first"].tolist() == batch["fork"].tolist() == [[0] * 4 + [4] * 5, [0] * 9]
    # The loss is taken where the label comes next, and at the label, where the end comes next.
    at = batch["positions"]
    assert torch.equal(batch["input_ids"][batch["rows"], at + 1], batch["labels"])
    assert batch["input_ids"][batch["rows"], at + 2].tolist() == [99] * 3
