"""The contenders of rank_speed.py but llama.cpp: transformers in two ways, Hugging Face `generate`, rectune.

Those that run plain prompts get them tokenised already, which counts for them; rectune's time includes putting its
trees together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from rank_requests import Asked, Job, bench_config, own_run, plain_model, silent

from rectune.model.device import choose_device, choose_dtype
from rectune.prompt.layouts import Prompts
from rectune.score.candidates import CandidateScorer
from rectune.score.generate import MAX_NEW_TOKENS, extract_label

Settings = dict[str, Any]

TOLERANCE = 0.25
"""How far log-odds in bfloat16 or with quantised activations may lie from those of float32, at most."""


class Forward:
    """Plain transformers: padded batches, and the logits of every position or of the last one only."""

    def __init__(self, job: Job, prompts: Prompts) -> None:
        self.job, self.words = job, prompts.verbalizer
        self.last_only = job["kind"] == "forward-last"
        self.device = choose_device()[0]
        self.dtype = choose_dtype(bench_config(job), self.device)[0]
        self.loaded: str | None = None

    def choices(self) -> list[Settings]:
        """Settings to try; the first stands where nothing is searched."""
        sizes = (16, 4, 32) if self.device.type == "cpu" else (128, 32, 512)
        kernels = ["sdpa", "eager"]
        if self.device.type == "cuda":
            from transformers.utils import is_flash_attn_2_available

            kernels = ["sdpa", *(["flash_attention_2"] if is_flash_attn_2_available() else [])]
        return [{"attention": kernel, "batch": size} for kernel in kernels for size in sizes]

    def use(self, settings: Settings) -> None:
        """Take these settings from now on."""
        if self.loaded != settings["attention"]:
            self.model = plain_model(self.job, self.dtype, settings["attention"])
            self.loaded = settings["attention"]
        self.size = settings["batch"]

    def step(self, settings: Settings) -> int:
        """Pairs that are worth giving at once."""
        return int(settings["batch"])

    def tokens(self, asked: Asked) -> int:
        """Tokens that a request costs."""
        return asked.prompt_tokens

    def batches(self, asked: list[Asked], left: bool) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Padded batches of prompts of about one length: their places among all prompts, ids and mask."""
        prompts = [prompt for each in asked for prompt in each.prompts]
        order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
        for begin in range(0, len(order), self.size):
            places = order[begin : begin + self.size]
            width = len(prompts[places[0]])
            ids = torch.full((len(places), width), self.words.end_id)
            mask = torch.zeros_like(ids)
            for row, at in enumerate(places):
                cells = slice(width - len(prompts[at]), width) if left else slice(0, len(prompts[at]))
                ids[row, cells], mask[row, cells] = torch.tensor(prompts[at]), 1
            yield places, ids.to(self.device), mask.to(self.device)

    def answer(self, asked: list[Asked]) -> np.ndarray[Any, Any]:
        """Log-odds of all candidates, one request after the other."""
        found = np.empty(sum(len(each.prompts) for each in asked))
        for places, ids, mask in self.batches(asked, left=self.last_only):
            with torch.inference_mode():
                if self.last_only:
                    logits = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1]
                else:
                    whole = self.model(input_ids=ids, attention_mask=mask).logits
                    logits = whole[torch.arange(len(ids)), mask.sum(1) - 1]
                odds = logits[:, self.words.positive_id].float() - logits[:, self.words.negative_id].float()
            found[places] = odds.cpu().numpy()
        return found

    def wrong(self, asked: list[Asked], expected: Job) -> Job:
        """How far the answers lie from the reference's; `problem` says what is wrong, None where nothing is."""
        far = np.abs(self.answer(asked) - np.array(expected["log_odds"]))
        problem = f"log-odds are {far.max():.3f} from plain float32 prompts" if far.max() > TOLERANCE else None
        return {"largest": float(far.max()), "mean": float(far.mean()), "pairs": len(far), "problem": problem}


class Generate(Forward):
    """Hugging Face `generate`: whole prompts in batches, 8 new tokens at most, fewer when all rows have ended."""

    def __init__(self, job: Job, prompts: Prompts) -> None:
        super().__init__(job, prompts)
        self.tokenizer = prompts.pieces.tokenizer

    def generated(self, asked: list[Asked]) -> list[list[int]]:
        """New tokens of all candidates."""
        found: list[list[int]] = [[] for each in asked for _ in each.prompts]
        for places, ids, mask in self.batches(asked, left=True):
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
                    temperature=None, top_p=None, top_k=None,
                    eos_token_id=self.words.end_id, pad_token_id=self.words.end_id,
                )  # fmt: skip
            for at, tokens in zip(places, output[:, ids.shape[1] :].tolist(), strict=True):
                found[at] = tokens
        return found

    def labels(self, generated: list[list[int]]) -> np.ndarray[Any, Any]:
        """Labels 1 and 0, -1 where the text gives none."""
        found = [extract_label(self.tokenizer.decode(ids, skip_special_tokens=True), self.words) for ids in generated]
        return np.array([-1 if label is None else label for label in found])

    def answer(self, asked: list[Asked]) -> np.ndarray[Any, Any]:
        """The labels of all candidates, one request after the other."""
        return self.labels(self.generated(asked))

    def wrong(self, asked: list[Asked], expected: Job) -> Job:
        """A first token other than the reference's, or another label, counts where the reference is no near tie."""
        generated = self.generated(asked)
        first = np.array([tokens[0] for tokens in generated])
        labels, odds = self.labels(generated), np.array(expected["log_odds"])
        clear = np.array(expected["gap"]) > TOLERANCE
        tokens = int((first != np.array(expected["token"]))[clear].sum())
        said = (labels >= 0) & (np.abs(odds) > TOLERANCE)
        flipped = int((labels != (odds > 0))[said].sum())
        counts = {"labels": int((labels >= 0).sum()), "clear": int(clear.sum()), "pairs": len(first)}
        bad = {"first tokens": tokens, "labels": flipped}
        problem = ", ".join(f"{count} {name} differ" for name, count in bad.items() if count) or None
        return counts | {"tokens_differ": tokens, "labels_differ": flipped, "problem": problem}


class Ours(Forward):
    """rectune's CandidateScorer; every request pays for its history, nothing is kept between requests."""

    def __init__(self, job: Job, prompts: Prompts) -> None:
        super().__init__(job, prompts)
        self.scorer: CandidateScorer | None = None

    def choices(self) -> list[Settings]:
        """Nothing to choose."""
        return [{}]

    def use(self, settings: Settings) -> None:
        """Open the model."""
        if self.scorer is None:
            opened = own_run(self.job)
            self.scorer = CandidateScorer(opened, silent)

    def step(self, settings: Settings) -> int:
        """Whole requests."""
        return 10**9

    def tokens(self, asked: Asked) -> int:
        """The trunk once."""
        return asked.trunk_tokens

    def answer(self, asked: list[Asked]) -> np.ndarray[Any, Any]:
        """Log-odds of all candidates, one request after the other."""
        assert self.scorer is not None
        return np.concatenate(self.scorer.score([each.request for each in asked]))
