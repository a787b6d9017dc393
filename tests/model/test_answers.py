"""Answers read at chosen places equal those of the model's own full forward, and nothing bigger is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from rectune.errors import ModelError
from rectune.model.answers import head_weight, hidden_at, label_logits, word_losses
from rectune.model.losses import label_losses
from rectune.prompt.verbalizer import Verbalizer

IDS = torch.randint(0, 300, (3, 11), generator=torch.Generator().manual_seed(3))
ROWS, PLACES = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([10, 3, 6, 0, 8])


@pytest.fixture(scope="module")
def model(tiny_qwen3: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_qwen3).eval()


def full_logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits[ROWS, PLACES]  # type: ignore[no-any-return]


def test_label_logits_are_two_columns_of_the_full_forward(model: Any) -> None:
    with torch.inference_mode():
        found = label_logits(model, hidden_at(model, IDS, ROWS, PLACES), negative_id=17, positive_id=201)
    torch.testing.assert_close(found, full_logits(model)[:, [17, 201]], atol=1e-5, rtol=0)
    assert found.dtype == torch.float32


def test_word_losses_are_the_cross_entropy_of_the_full_forward(model: Any) -> None:
    targets = torch.tensor([1, 2, 3, 200, 17])
    with torch.inference_mode():
        found = word_losses(model, hidden_at(model, IDS, ROWS, PLACES), targets)
    logits = full_logits(model).double()
    by_hand = torch.logsumexp(logits, dim=-1) - logits[torch.arange(5), targets]
    torch.testing.assert_close(found.double(), by_hand, atol=1e-5, rtol=0)


@pytest.mark.parametrize("over", ["vocabulary", "labels"])
@pytest.mark.parametrize("prior", [[0.0] * 5, [0.0, 2.5, -1.0, 0.25, -4.0]])
def test_label_losses_are_the_cross_entropy_with_the_prior_on_the_positive_word(
    model: Any, over: str, prior: list[float]
) -> None:
    words, labels = Verbalizer("Yes", "No", 201, 17, 1), torch.tensor([201, 17, 17, 201, 201])
    with torch.inference_mode():
        found = label_losses(model, hidden_at(model, IDS, ROWS, PLACES), labels, torch.tensor(prior), words, over)
    logits = full_logits(model).double()
    logits[:, 201] += torch.tensor(prior).double()
    among = logits if over == "vocabulary" else logits[:, [17, 201]]
    by_hand = torch.logsumexp(among, dim=-1) - logits[torch.arange(5), labels]
    torch.testing.assert_close(found.double(), by_hand, atol=1e-5, rtol=0)


def test_padding_on_the_right_changes_no_answer(model: Any) -> None:
    with torch.inference_mode():
        short = hidden_at(model, IDS[:1, :7], torch.tensor([0]), torch.tensor([6]))
        padded = torch.cat([IDS[:1, :7], torch.full((1, 30), 9)], dim=1)
        long = hidden_at(model, padded, torch.tensor([0]), torch.tensor([6]))
    torch.testing.assert_close(short, long, atol=1e-5, rtol=0)


def test_an_adapter_is_part_of_the_answer(tiny_qwen3: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_qwen3),
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    ).eval()
    with torch.inference_mode():
        tuned = label_logits(adapted, hidden_at(adapted, IDS, ROWS, PLACES), 17, 201)
        torch.testing.assert_close(tuned, adapted(input_ids=IDS).logits[ROWS, PLACES][:, [17, 201]], atol=1e-4, rtol=0)
        with adapted.disable_adapter():
            untuned = label_logits(adapted, hidden_at(adapted, IDS, ROWS, PLACES), 17, 201)
    assert not torch.allclose(tuned, untuned)


def test_the_head_is_never_called_on_whole_sequences(
    tiny_qwen3: Path, qwen3_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One training step and one scoring call: the head's forward must not run, and no tensor may be that big."""
    import numpy as np
    from transformers import AutoModelForCausalLM

    from rectune.prompt.tree import Trees
    from rectune.score.scorer import score_trees
    from rectune.train.batches import TrainingCollator

    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3)

    def refused(*_: Any) -> None:
        raise AssertionError("the head ran")

    monkeypatch.setattr(model.lm_head, "forward", refused)
    vocabulary, length, count = model.config.vocab_size, 40, 6
    linear, sizes = functional.linear, []

    def watched(*values: Any, **named: Any) -> torch.Tensor:
        output = linear(*values, **named)
        if output.shape[-1] == vocabulary:
            sizes.append(tuple(output.shape))
        return output

    monkeypatch.setattr(functional, "linear", watched)
    tokens = (np.arange(count * length) % 300).reshape(count, length)
    trees = Trees.of_prompts(list(tokens), [0, 1] * 3, np.arange(count), np.zeros(count))
    words = Verbalizer("Yes", "No", 201, 17, int(qwen3_tokenizer.eos_token_id))
    assert np.isfinite(score_trees(model, trees, words, 3, "sdpa")).all()
    assert sizes == []
    batch = TrainingCollator(trees, words, with_end=True)([[0, 1], [2], [3, 4, 5]])
    both = torch.cat([batch["rows"], batch["rows"]]), torch.cat([batch["positions"], batch["positions"] + 1])
    targets = torch.cat([batch["labels"], torch.full_like(batch["labels"], words.end_id)])
    word_losses(model, hidden_at(model, batch["input_ids"], *both), targets).sum().backward()
    assert sizes == [(2 * count, vocabulary)]
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None


def test_an_unusual_head_is_refused(model: Any) -> None:
    class Odd(torch.nn.Module):
        def __init__(self, head: Any) -> None:
            super().__init__()
            self.head = head

        def get_output_embeddings(self) -> Any:
            return self.head

    for head in (torch.nn.Linear(4, 9, bias=True), torch.nn.Identity(), None):
        with pytest.raises(ModelError, match=r"^Odd: its output head is not a plain linear layer"):
            head_weight(Odd(head))
    assert head_weight(Odd(torch.nn.Linear(4, 9, bias=False))).shape == (9, 4)
