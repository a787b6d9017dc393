"""The loss of a stream: worked out by hand, and equal to that of its plain prompts however it is packed."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional

from rectune.config import parse_config
from rectune.model import blocks
from rectune.model.answers import head_weight, label_logits, word_losses
from rectune.model.losses import AnswerLoss, label_losses
from rectune.prompt.encode import EventHistories, encode_stream
from rectune.prompt.pieces import Pieces
from rectune.prompt.stream import StreamPrompts
from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer
from rectune.train.batches import TrainingCollator
from rectune.train.halving import Halving
from rectune.train.speed import Meter
from rectune.train.trainer import AnswerTrainer
from rectune.world import World

WORDS = Verbalizer("Yes", "No", positive_id=2, negative_id=0, end_id=3)


class Head(torch.nn.Module):
    """A head of 4 tokens over 2 numbers, and nothing below it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 4, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 0.0]]))

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.linear


# Logits of the four tokens: (1, 2, 4, 0) and (3, -1, 5, 0).
HIDDEN = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
LOGITS = [[1.0, 2.0, 4.0, 0.0], [3.0, -1.0, 5.0, 0.0]]
LABELS = torch.tensor([2, 0])
PRIOR = torch.tensor([0.5, -2.0])


def test_over_labels_the_loss_is_that_of_the_log_odds_by_hand() -> None:
    # Log-odds: 4 - 1 + 0.5 = 3.5 for Yes, 5 - 3 - 2 = 0 for No.
    found = label_losses(Head(), HIDDEN, LABELS, PRIOR, WORDS, "labels")
    assert found.tolist() == pytest.approx([math.log1p(math.exp(-3.5)), math.log(2)])
    found = label_losses(Head(), HIDDEN, LABELS, torch.zeros(2), WORDS, "labels")
    assert found.tolist() == pytest.approx([math.log1p(math.exp(-3)), math.log1p(math.exp(2))])


def test_over_the_vocabulary_a_prior_shifts_the_positive_words_logit() -> None:
    found = label_losses(Head(), HIDDEN, LABELS, PRIOR, WORDS, "vocabulary")
    shifted = [[1.0, 2.0, 4.5, 0.0], [3.0, -1.0, 3.0, 0.0]]
    by_hand = [
        math.log(sum(map(math.exp, shifted[0]))) - 4.5,
        math.log(sum(map(math.exp, shifted[1]))) - 3.0,
    ]
    assert found.tolist() == pytest.approx(by_hand)


def test_over_the_vocabulary_no_prior_is_plain_cross_entropy() -> None:
    found = label_losses(Head(), HIDDEN, LABELS, torch.zeros(2), WORDS, "vocabulary")
    by_hand = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(LOGITS, [2, 0], strict=True)]
    assert found.tolist() == pytest.approx(by_hand)
    assert found.tolist() == word_losses(Head(), HIDDEN, LABELS).tolist()


@pytest.mark.parametrize("over", ["labels", "vocabulary"])
def test_gradients_are_those_of_the_whole_heads_logits(over: str) -> None:
    model, hidden = Head(), HIDDEN.clone().requires_grad_()
    found = torch.autograd.grad(label_losses(model, hidden, LABELS, PRIOR, WORDS, over).sum(), hidden)
    other = HIDDEN.clone().requires_grad_()
    logits = functional.linear(other, head_weight(model).detach())
    logits = logits + functional.one_hot(torch.tensor([2, 2]), 4) * PRIOR[:, None]
    kept = [0, 2] if over == "labels" else [0, 1, 2, 3]
    target = torch.tensor([kept.index(2), kept.index(0)])
    expected = torch.autograd.grad(functional.cross_entropy(logits[:, kept], target, reduction="sum"), other)
    torch.testing.assert_close(found, expected)


# --- a training step ---


@pytest.fixture(scope="module")
def stream(qwen3_tokenizer: Any) -> tuple[Trees, StreamPrompts]:
    """Windows of two users with ties, with priors."""
    rows: list[tuple[Any, ...]] = []
    for user, times in (("a", [0, 1, 1, 2, 3, 3, 3, 4]), ("b", [0, 0, 1, 5, 5, 6])):
        for place, time in enumerate(times):
            rating, film = [5.0, 2.0, 4.0][len(rows) % 3], str(len(rows) * 3 % 7)
            row = (user, film, rating, time, int(rating >= 4), "train", place, times.index(time), len(rows))
            rows.append(row)
    names = ["user_id", "item_id", "rating", "timestamp", "label", "split", "position", "history_end", "row_id"]
    events = pl.DataFrame(rows, schema=names, orient="row")
    films = pl.DataFrame(
        {
            "item_id": [str(at) for at in range(7)],
            "title": [f"Film {at}" for at in range(7)],
            "genres": "",
            "year": None,
        }
    )
    config = parse_config(
        {"system_prompt": "", "stream_header": "Films:", "history_shows": "label", "cutoff_len": 100,
         "prior": "item_rate"}, origin="test",
    )  # fmt: skip
    prompts = StreamPrompts(config, Pieces(qwen3_tokenizer))
    trees = encode_stream(prompts, EventHistories(events, films, config), events, np.arange(len(rows)), 0.25)
    assert len(trees) > 2 and trees.branching and np.abs(trees.prior).min() < np.abs(trees.prior).max()
    return trees, prompts


def trainer_of(folder: Path, model: Any, words: Verbalizer, kernel: str, over: str) -> AnswerTrainer:
    """A trainer whose loss is asked for, and nothing else."""
    from transformers import TrainingArguments

    return AnswerTrainer(
        world=World(),
        verbalizer=words,
        attention=kernel,
        answer_loss=AnswerLoss(over),
        lr_ratio=None,
        with_end=False,
        validation=None,
        save_total_limit=None,
        start=None,
        on_saved=lambda _folder: None,
        cutting=nullcontext,
        halving=Halving(False, print),
        meter=Meter(torch.device("cpu"), None, None, 0, print),
        model=model,
        args=TrainingArguments(str(folder), report_to=[], use_cpu=True, disable_tqdm=True),
    )


def plain_losses(model: Any, trees: Trees, words: Verbalizer, over: str) -> torch.Tensor:
    """Cross-entropy of each plain prompt's label, run alone through the model's own forward and whole head."""
    plain = trees.plain()
    losses = []
    for index in range(len(plain)):
        ids = torch.from_numpy(plain.tree_tokens(index).astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0, -1].clone()
        logits[words.positive_id] += float(plain.prior[index])
        both = [words.negative_id, words.positive_id]
        target = torch.tensor(int(plain.labels[index]))
        if over == "vocabulary":
            losses.append(functional.cross_entropy(logits, torch.tensor(both)[target]))
        else:
            losses.append(functional.cross_entropy(logits[both], target))
    return torch.stack(losses)


@pytest.mark.parametrize("kernel", ["sdpa", blocks.KERNEL])
@pytest.mark.parametrize("over", ["vocabulary", "labels"])
def test_a_packed_step_has_the_loss_and_gradients_of_its_plain_prompts(
    tiny_qwen3: Path, tmp_path: Path, stream: tuple[Trees, StreamPrompts], kernel: str, over: str
) -> None:
    from transformers import AutoModelForCausalLM

    blocks.register()
    trees, prompts = stream
    words = prompts.verbalizer
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32, attn_implementation=kernel).eval()
    trainer = trainer_of(tmp_path, model, words, kernel, over)
    collate = TrainingCollator(trees, words, with_end=False)
    apart = [[index] for index in range(len(trees))]
    packed = [[len(trees) - 1, 0], list(range(1, len(trees) - 1))]

    weight = model.model.layers[0].self_attn.k_proj.weight

    def loss_of(packs: list[list[int]]) -> tuple[float, torch.Tensor]:
        loss = trainer.compute_loss(model, collate(packs))
        return loss.item(), torch.autograd.grad(loss, weight)[0]

    alone, alone_gradient = loss_of(apart)
    together, together_gradient = loss_of(packed)
    expected = plain_losses(model, trees, words, over).mean()
    (gradient,) = torch.autograd.grad(expected, weight)
    assert alone == pytest.approx(expected.item(), abs=1e-5)
    assert together == pytest.approx(expected.item(), abs=1e-5)
    scale = float(gradient.abs().max())
    assert scale > 1e-3
    torch.testing.assert_close(alone_gradient, gradient, atol=1e-4 * scale, rtol=0)
    torch.testing.assert_close(together_gradient, gradient, atol=1e-4 * scale, rtol=0)


def test_micro_batches_of_one_step_add_up_to_the_mean_over_its_answers(
    tiny_qwen3: Path, tmp_path: Path, stream: tuple[Trees, StreamPrompts]
) -> None:
    """Rows hold different numbers of answers, so each is divided by the step's answers, not by its own."""
    from transformers import AutoModelForCausalLM

    trees, prompts = stream
    words = prompts.verbalizer
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32).eval()
    trainer = trainer_of(tmp_path, model, words, "sdpa", "vocabulary")
    collate = TrainingCollator(trees, words, with_end=False)
    batches = [collate([[0, 1]]), collate([list(range(2, len(trees)))])]
    assert len(batches[0]["labels"]) != len(batches[1]["labels"])
    count = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    assert count is not None and int(count) == len(trees.labels)
    with torch.inference_mode():
        found = sum(float(trainer.compute_loss(model, batch, num_items_in_batch=count)) for batch in batches)
        expected = float(plain_losses(model, trees, words, "vocabulary").mean())
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_stream_has_no_end_token_behind_its_trees(stream: tuple[Trees, StreamPrompts]) -> None:
    trees, prompts = stream
    batch = TrainingCollator(trees, prompts.verbalizer, with_end=False)([[1], [0]])
    assert batch["input_ids"][0, : trees.lengths[1]].tolist() == trees.tree_tokens(1).tolist()
    assert batch["input_ids"].shape[1] == int(trees.lengths[:2].max())
    mine = [*range(*trees.answers(1).indices(999)), *range(*trees.answers(0).indices(999))]
    assert batch["prior"].tolist() == trees.prior[mine].tolist()
    assert batch["labels"].tolist() == [prompts.verbalizer.token(int(trees.labels[at])) for at in mine]
    assert batch["positions"].tolist() == trees.answer_at[mine].tolist()


def test_label_logits_and_losses_agree(stream: tuple[Trees, StreamPrompts]) -> None:
    """What is trained on is what is scored."""
    logits = label_logits(Head(), HIDDEN, WORDS.negative_id, WORDS.positive_id)
    log_odds = (logits[:, 1] - logits[:, 0] + PRIOR).tolist()
    losses = label_losses(Head(), HIDDEN, LABELS, PRIOR, WORDS, "labels").tolist()
    assert losses == pytest.approx([math.log1p(math.exp(-log_odds[0])), math.log1p(math.exp(log_odds[1]))])
