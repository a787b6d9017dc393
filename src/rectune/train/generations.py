"""Validation prompts answered by greedy generation while a run trains: what a chat user would read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from rectune.files import write_text
from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer
from rectune.score.generate import agreement, generate_answers
from rectune.score.scorer import score_trees

_STEP = re.compile(r"step (\d+)")


class Generations(TrainerCallback):
    """Answers the first validation prompts at each evaluation, and keeps every text in `logs/generations.txt`.

    Greedy generation draws no random number and the model stands in evaluation mode, so training is not touched.

    Args:
        file: one line a text: step, row, text as JSON; the best adapter's lines begin with `best, `.
        model: the adapted model.
        trees: the validation prompts.
        count: how many of them are answered.
        tokenizer: turns tokens into text.
        verbalizer: label words and tokens.
        batch_size: prompts per forward pass.
        attention: the attention kernel in use.
        say: prints one line.
    """

    def __init__(
        self,
        file: Path,
        model: Any,
        trees: Trees,
        count: int,
        tokenizer: Any,
        verbalizer: Verbalizer,
        batch_size: int,
        attention: str,
        say: Callable[[str], None],
    ) -> None:
        self.file = file
        self.model = model
        first = int(np.searchsorted(trees.answer_offsets, min(count, len(trees.labels))))
        self.trees = trees.select(np.arange(first)).plain().select(np.arange(min(count, len(trees.labels))))
        self.tokenizer = tokenizer
        self.verbalizer = verbalizer
        self.batch_size = batch_size
        self.attention = attention
        self.say = say

    def _kept(self, until: int) -> list[str]:
        """The lines of evaluations up to a step; those of the best adapter and of later steps are made anew."""
        if not self.file.is_file():
            return []
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if (match := _STEP.match(line)) is not None and int(match[1]) <= until]

    def _answer(self, kept: list[str], head: str) -> list[str]:
        """Generate, write all lines whole or not at all, and return the texts."""
        texts = generate_answers(self.model, self.trees, self.tokenizer, self.verbalizer, self.batch_size)
        rows = self.trees.rows.tolist()
        new = [
            f"{head} row {row}: {json.dumps(text, ensure_ascii=False)}" for row, text in zip(rows, texts, strict=True)
        ]
        write_text(self.file, "".join(line + "\n" for line in [*kept, *new]))
        return texts

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep only what belongs to the steps that the run goes on from."""
        if self.file.is_file():
            write_text(self.file, "".join(line + "\n" for line in self._kept(state.global_step)))

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Answer with the adapter as it is now; lines of this step or later, of a run cut off before, go."""
        self._answer(self._kept(state.global_step - 1), f"step {state.global_step}")

    def finish(self, step: int, last_step: int) -> None:
        """Answer with the best adapter, which the model holds now, and say how many texts agree with the logits.

        Args:
            step: the best adapter's.
            last_step: the run's.
        """
        texts = self._answer(self._kept(last_step), f"best, step {step}")
        odds = score_trees(self.model, self.trees, self.verbalizer, self.batch_size, self.attention)
        same = agreement(texts, odds, self.verbalizer)
        self.say(
            f"generation: {same:.1%} of {len(texts)} greedy answers name the label with the higher logit, "
            f"e.g. {texts[:3]}"
        )
