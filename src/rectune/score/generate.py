"""Answer by greedy generation, as a chat user would, and find the label word in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from rectune.errors import ResourceError
from rectune.model.answers import label_logits
from rectune.prompt.tree import Trees
from rectune.prompt.verbalizer import Verbalizer
from rectune.score.open_run import OpenRun
from rectune.score.scorer import Progress, scoring_batches
from rectune.score.settings import CLASSIFIER

MAX_NEW_TOKENS = 8
_THINK = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)


def generation_problem(run: OpenRun) -> str | None:
    """What generation cannot do for a run, or None where it can answer in words."""
    if run.settings.head == CLASSIFIER:
        return "cannot ask this run's classification head, which writes no words"
    if run.config.prior != "none" or run.settings.blend:
        return "cannot add this run's prior or baselines to an answer"
    return None


def extract_label(text: str, verbalizer: Verbalizer) -> int | None:
    """The label that a generated answer gives, or None.

    Thinking is cut out: closed, never closed, or opened by the prompt already. The answer is the label word it
    begins with, quotes and the like aside; failing that, the only one of the two words in it. An answer with both
    words and neither first, or with none, gives no label.

    >>> words = Verbalizer("Yes", "No", 1, 2, 3)
    >>> extract_label("<think>\\nNo idea\\n</think>\\n\\nYes.", words)
    1
    >>> extract_label("It is a no", words), extract_label("Nothing", words), extract_label("Perhaps", words)
    (0, None, None)
    """
    answer = _THINK.sub("", text).rpartition("</think>")[2].strip()
    found = {}
    for label in (1, 0):
        pattern = rf"(?<!\w){re.escape(verbalizer.word(label))}(?!\w)"
        match = re.search(pattern, answer, re.IGNORECASE)
        if match is not None:
            found[label] = match.start()
    if len(found) == 1:
        return next(iter(found))
    first = [label for label, at in found.items() if not re.search(r"\w", answer[:at])]
    return first[0] if len(first) == 1 else None


@contextmanager
def exact_labels(model: Any, verbalizer: Verbalizer) -> Iterator[None]:
    """While open, the head gives the two label words the float32 logits that scores are made of.

    bfloat16 holds a logit of 20 to a sixteenth, so the two words often tie there, and the tie would go to the
    smaller token id whatever the score says. The backbone runs under the same autocast as in `hidden_at`.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = [verbalizer.negative_id, verbalizer.positive_id]

    def refine(_head: Any, arguments: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            exact = logits.float()
            exact[..., ids] = label_logits(model, arguments[0], *ids)
        return exact

    hook = bare.get_output_embeddings().register_forward_hook(refine, prepend=True)
    try:
        with torch.autocast(next(model.parameters()).device.type, bare.dtype, enabled=bare.dtype != torch.float32):
            yield
    finally:
        hook.remove()


def generate_answers(
    model: Any, trees: Trees, tokenizer: Any, verbalizer: Verbalizer, batch_size: int, progress: Progress | None = None
) -> list[str]:
    """Greedy answers to the prompts of trees with one answer each: at most 8 new tokens, special tokens kept out.

    Returns:
        The generated texts, in the order of the trees.

    Raises:
        ResourceError: a batch does not fit the device's memory.
    """
    device = next(model.parameters()).device
    texts = [""] * len(trees)
    was_training = model.training
    model.eval()
    try:
        for batch in scoring_batches(trees, batch_size):
            # generate() continues after the last column, so prompts are moved to the right end of their rows.
            prompts = torch.from_numpy(batch.input_ids)
            width = prompts.shape[1]
            input_ids = torch.full_like(prompts, verbalizer.end_id)
            mask = torch.zeros_like(prompts)
            for row, last in enumerate(batch.positions.tolist()):
                input_ids[row, width - last - 1 :] = prompts[row, : last + 1]
                mask[row, width - last - 1 :] = 1
            with torch.inference_mode(), exact_labels(model, verbalizer):
                output = model.generate(
                    input_ids=input_ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=MAX_NEW_TOKENS,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    eos_token_id=verbalizer.end_id,
                    pad_token_id=verbalizer.end_id,
                )
            for tree, ids in zip(batch.answers.tolist(), output[:, width:].cpu(), strict=True):
                texts[tree] = tokenizer.decode(ids, skip_special_tokens=True).strip()
            if progress is not None:
                progress(len(input_ids))
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"answering {batch_size} prompts of {int(trees.lengths.max())} tokens at once does not fit this device; "
            f"set per_device_eval_batch_size={max(1, batch_size // 2)}"
        ) from error
    finally:
        model.train(was_training)
    return texts


def agreement(texts: list[str], log_odds: np.ndarray[Any, np.dtype[np.float64]], verbalizer: Verbalizer) -> float:
    """Share of prompts whose generated label is the one with the higher logit; no label counts as disagreement."""
    labels = [extract_label(text, verbalizer) for text in texts]
    return float(np.mean([label == int(odds > 0) for label, odds in zip(labels, log_odds, strict=True)]))


def generated_metrics(labels: Sequence[int], answers: Sequence[int | None]) -> dict[str, float]:
    """Metrics of the labels that generated answers give; an answer without a label is neither right nor a yes.

    >>> generated_metrics([1, 1, 0, 0], [1, None, 1, None])
    {'accuracy': 0.25, 'precision': 0.5, 'recall': 0.5, 'f1': 0.5, 'without_label': 0.5}
    """
    pairs = list(zip(labels, answers, strict=True))
    hits, said, liked = pairs.count((1, 1)), list(answers).count(1), list(labels).count(1)
    return {
        "accuracy": sum(label == answer for label, answer in pairs) / max(len(pairs), 1),
        "precision": hits / max(said, 1),
        "recall": hits / max(liked, 1),
        "f1": 2 * hits / max(said + liked, 1),
        "without_label": list(answers).count(None) / max(len(pairs), 1),
    }


def generated_line(name: str, found: dict[str, float]) -> str:
    """These metrics for a person.

    >>> generated_line("tuned", generated_metrics([1, 0], [1, None]))
    'generated, tuned: accuracy 0.500  precision 1.000  recall 1.000  f1 1.000  (50.0% of the answers without a label)'
    """
    shown = "  ".join(f"{key} {found[key]:.3f}" for key in ("accuracy", "precision", "recall", "f1"))
    return f"generated, {name}: {shown}  ({found['without_label']:.1%} of the answers without a label)"
