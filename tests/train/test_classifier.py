"""A classification head: trained with the adapter, starting as the label words, loadable without rectune."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from rectune.config import Config, parse_config
from rectune.errors import ConfigError, ModelError
from rectune.measure.classification import probability
from rectune.model.answers import classification_weight, head_weight, hidden_at, label_logits
from rectune.model.classifier import for_answers, with_classification_head
from rectune.model.load import load_model
from rectune.model.lora import ADAPTER_FILE
from rectune.prompt.encode import encode, sample_rows
from rectune.prompt.events import Event
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.tree import Trees
from rectune.report.evaluate import evaluate
from rectune.report.infer import infer_demo, infer_file
from rectune.score.open_run import open_run
from rectune.score.recommender import Recommender
from rectune.score.score import open_data
from rectune.score.scorer import score_trees
from rectune.train.start import Resume

QUIET = Console(quiet=True)
HEAD_KEY = "base_model.model.score.weight"
SHORT: dict[str, Any] = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1}
CLASSIFIER: dict[str, Any] = {**SHORT, "prompt_format": "classifier"}
LAYOUTS: list[dict[str, Any]] = [
    {"layout": "pointwise"},
    {"layout": "pointwise", "packing": True, "cutoff_len": 512},
    {"layout": "stream", "history_shows": "label", "packing": True, "prior": "item_rate"},
]
Run = Callable[..., tuple[Path, list[str]]]


def silent(_line: str) -> None:
    """Say nothing."""


def history(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "log_history.json").read_text(encoding="utf-8"))
    return found


class Words:
    positive_id, negative_id = 201, 17


def base(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False).eval()


def test_an_untrained_head_gives_the_label_words_logits_bit_by_bit(tiny_qwen3: Path) -> None:
    ids = torch.arange(40).reshape(2, 20)
    places = torch.tensor([0, 1]), torch.tensor([19, 7])
    model = base(tiny_qwen3)
    rows = head_weight(model)[[17, 201]].clone()
    state = torch.get_rng_state()
    with torch.inference_mode():
        words = label_logits(model, hidden_at(model, ids, *places), 17, 201)
        headed = with_classification_head(model, Words())
        found = label_logits(headed, hidden_at(headed, ids, *places), 17, 201)
    assert type(headed).__name__ == "Qwen3ForSequenceClassification"
    assert torch.equal(found, words) and torch.equal(headed.score.weight, rows)
    assert torch.equal(torch.get_rng_state(), state)  # no random number was drawn
    # With rows the other way round the logits change places: the token ids given at scoring are not looked at.
    assert torch.equal(label_logits(headed, hidden_at(headed, ids, *places), 201, 17), words)
    assert not any(value.requires_grad or value.is_meta for value in headed.parameters())


def test_a_family_without_a_head_is_one_line() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, state_size=2))
    with pytest.raises(ModelError, match=r"^prompt_format: classifier: transformers has no classification head"):
        with_classification_head(model, Words())


@pytest.mark.parametrize("option", LAYOUTS, ids=str)
def test_a_head_trains_in_every_layout_and_scores_as_it_did(option: dict[str, Any], run: Run, tmp_path: Path) -> None:
    folder, lines = run(**CLASSIFIER, **option)
    assert "head: 2 x 32 weights in place of the vocabulary, started as the label words" in lines
    assert any(line.startswith("loss: over the two labels (prompt_format: classifier)") for line in lines)
    saved = load_file(folder / ADAPTER_FILE)
    opened = open_run(folder, [], silent)
    words = opened.prompts.verbalizer
    start = head_weight(base(Path(opened.config.model_name_or_path)))[[words.negative_id, words.positive_id]]
    assert saved[HEAD_KEY].shape == (2, 32) and saved[HEAD_KEY].dtype == torch.float32
    assert not torch.equal(saved[HEAD_KEY], start.detach())
    settings = json.loads((folder / "rectune.json").read_text(encoding="utf-8"))
    assert settings["head"] == "classifier"
    said: list[str] = []
    report = evaluate(folder, [], "validation", "logits", True, said.append, QUIET).report
    assert "check: largest difference from the scores during training, row by row: 0 in log-odds" in said
    assert report["models"]["tuned"]["metrics"] != report["models"]["untuned"]["metrics"]


@pytest.mark.parametrize(
    "option",
    [
        {"use_qlora": True},
        {"init_lora_weights": "pissa", "loraplus_lr_ratio": 4.0, "class_weights": "balanced"},
        {"bf16": True, "gradient_checkpointing": True, "lora_layers": "upper_half", "focal_gamma": 1.0},
    ],
    ids=str,
)
def test_a_head_trains_beside_every_other_option(option: dict[str, Any], run: Run) -> None:
    if option.get("use_qlora"):
        pytest.importorskip("bitsandbytes")
    folder, _ = run(**{**CLASSIFIER, "max_steps": 2}, **option)
    saved = load_file(folder / ADAPTER_FILE)
    opened = open_run(folder, [], silent)
    assert saved[HEAD_KEY].dtype == torch.float32
    said: list[str] = []
    evaluate(folder, [], "validation", "logits", True, said.append, QUIET)
    assert "check: largest difference from the scores during training, row by row: 0 in log-odds" in said
    with opened.model.disable_adapter():
        before = classification_weight(opened.model)
    assert before is not None and not torch.equal(before, saved[HEAD_KEY])
    assert torch.equal(classification_weight(opened.model), saved[HEAD_KEY])


def test_untuned_is_the_model_with_label_words(run: Run, make: Callable[..., Config], tmp_path: Path) -> None:
    # A stream's prompts are those of prompt_format=completion, so the untuned head must answer as that run's base.
    keys = {"layout": "stream", "history_shows": "label"}
    scores = []
    for name in ("classifier", "completion"):
        folder, _ = run(**SHORT, **keys, prompt_format=name, output_dir=str(tmp_path / name))
        evaluate(folder, [], "validation", "logits", True, silent, QUIET)
        scores.append(
            {
                which: pl.read_parquet(folder / f"predictions_validation_{which}.parquet")
                for which in ("tuned", "untuned")
            }
        )
    head, plain = scores
    assert head["untuned"]["log_odds"].equals(plain["untuned"]["log_odds"])
    assert not head["tuned"]["log_odds"].equals(plain["tuned"]["log_odds"])


def test_the_same_seed_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    first, second = (run(**CLASSIFIER, output_dir=str(tmp_path / name))[0] for name in "ab")
    assert (first / ADAPTER_FILE).read_bytes() == (second / ADAPTER_FILE).read_bytes()


def test_a_resumed_run_reaches_the_same_bytes_and_the_best_adapter_is_kept(run: Run, tmp_path: Path) -> None:
    keys = {**CLASSIFIER, "metric_for_best_model": "loss", "max_steps": 6, "save_total_limit": None}
    whole, _ = run(**keys, output_dir=str(tmp_path / "whole"))
    resumed, _ = run(Resume(checkpoint=whole / "checkpoint-2"), **keys, output_dir=str(tmp_path / "resumed"))
    for name in (ADAPTER_FILE, f"checkpoint-6/{ADAPTER_FILE}"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    losses = {log["step"]: log["eval_loss"] for log in history(whole) if "eval_loss" in log}
    best = min(losses, key=lambda step: losses[step])
    assert (whole / ADAPTER_FILE).read_bytes() == (whole / f"checkpoint-{best}" / ADAPTER_FILE).read_bytes()
    heads = {load_file(whole / f"checkpoint-{step}" / ADAPTER_FILE)[HEAD_KEY].sum().item() for step in (2, 4, 6)}
    assert len(heads) == 3


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_run_folder_loads_without_rectune_and_gives_the_same_log_odds(
    side: str, run: Run, tiny_qwen3: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, _ = run(**CLASSIFIER, learning_rate=0.01)
    opened = open_run(folder, [], silent)
    data = open_data(opened, silent)
    rows = sample_rows(data.events, "test", 8, 1)
    trees = encode(opened.config, data.events, data.catalog, data.content_hash, opened.prompts, rows, silent)
    assert len(set(trees.lengths.tolist())) > 1
    ours = score_trees(opened.model, trees, opened.prompts.verbalizer, 4, opened.loaded.attention)

    torch.manual_seed(99)  # the plain head is drawn at random, and the adapter's file replaces it
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_qwen3)
    plain.config.pad_token_id = tokenizer.pad_token_id
    model = PeftModel.from_pretrained(plain, folder).eval()
    batch = tokenizer.pad(
        {"input_ids": [trees.tree_tokens(index).tolist() for index in range(len(trees))]}, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(**batch).logits
    assert (logits[:, 1] - logits[:, 0]).numpy() == pytest.approx(ours, abs=1e-4)
    assert np.ptp(ours) > 0.01


def test_ranking_reads_the_head_and_untuned_too(run: Run, make: Callable[..., Config]) -> None:
    folder, _ = run(**CLASSIFIER)
    recommender = Recommender.load(folder, say=silent)
    past = [("Film 1, The (1981)", 5), ("Film 2, The (1982)", 1), ("Film 3, The (1983)", 4)]
    asked = ["Film 9, The (1989)", "Film 10, The (1990)", "Film 12, The (1992)"]
    ranked = recommender.rank(past, asked)
    events = [Event(title, rating, int(rating >= 4)) for title, rating in past]
    prompts = [recommender.run.prompts.build(events, title).tokens for title in asked]
    nothing = np.zeros(3, dtype=np.int32)
    trees = Trees.of_prompts(prompts, nothing, nothing, nothing)
    odds = score_trees(
        recommender.run.model, trees, recommender.run.prompts.verbalizer, 3, recommender.run.loaded.attention
    )
    expected = dict(zip(asked, probability(recommender.run.settings.calibrated(odds)).tolist(), strict=True))
    assert {item.title: item.score for item in ranked} == pytest.approx(expected, abs=1e-5)

    untuned = Recommender.load(make(prompt_format="classifier"), say=silent)
    assert type(untuned.run.model).__name__ == "Qwen3ForSequenceClassification"
    assert {item.title: item.score for item in untuned.rank(past, asked)} != pytest.approx(expected, abs=1e-5)


def test_words_are_refused_in_one_line(run: Run, make: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gen_eval_samples: a classification head writes no words"):
        make(prompt_format="classifier", gen_eval_samples=2)
    folder, _ = run(**CLASSIFIER)
    opened = open_run(folder, [], silent)
    said = r"^--mode: generate cannot ask this run's classification head, which writes no words; use logits$"
    with pytest.raises(ConfigError, match=said):
        evaluate(folder, [], "test", "generate", False, silent, QUIET)
    with pytest.raises(ConfigError, match=said):
        infer_file(opened, tmp_path / "none.jsonl", tmp_path, None, False, "generate", silent)
    lines: list[str] = []
    infer_demo(opened, lines.append)
    assert [line.strip().split(":")[0] for line in lines[-2:]] == ["untuned", "tuned"] and "says" not in lines[-1]


@pytest.mark.parametrize("first", ["classifier", "completion"])
def test_an_earlier_adapter_with_the_other_head_is_one_line(first: str, run: Run, tmp_path: Path) -> None:
    other = {"classifier": "completion", "completion": "classifier"}[first]
    folder, _ = run(**SHORT, prompt_format=first, output_dir=str(tmp_path / "first"))
    with pytest.raises(
        ModelError, match=r"this adapter answers with (a classification head|label words), and the"
    ) as caught:
        run(**SHORT, prompt_format=other, adapter_name_or_path=str(folder), output_dir=str(tmp_path / "second"))
    assert "\n" not in str(caught.value)


def test_training_goes_on_from_an_earlier_head(run: Run, tmp_path: Path) -> None:
    first, _ = run(**CLASSIFIER, output_dir=str(tmp_path / "first"))
    keys = {**CLASSIFIER, "learning_rate": 1e-9, "eval_strategy": "no"}
    second, _ = run(**keys, adapter_name_or_path=str(first), output_dir=str(tmp_path / "second"))
    there, here = (load_file(folder / ADAPTER_FILE)[HEAD_KEY] for folder in (first, second))
    assert torch.allclose(there, here, atol=1e-6) and not torch.equal(there, here)


def test_settings_with_a_head_that_is_not_the_prompts_are_refused(run: Run) -> None:
    folder, _ = run(**CLASSIFIER)
    file = folder / "rectune.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(values | {"head": "label_words", "sha256": None}), encoding="utf-8")
    with pytest.raises(ModelError, match="head is 'label_words', and this version cannot apply it"):
        open_run(folder, [], silent)


def test_a_prompt_for_a_head_may_fill_the_whole_cutoff(make: Callable[..., Config]) -> None:
    config = make(prompt_format="classifier")
    loaded = load_model(config, silent)
    pieces = Pieces(loaded.tokenizer)
    past = [Event(f"Film {number}", 4.0, 1) for number in range(3)]
    full = len(PointwisePrompts(config, pieces).build(past, "Film 9").tokens)
    for format_, room, dropped in (("classifier", full, 0), ("classifier", full - 1, 1)):
        cut = config.with_overrides(cutoff_len=room, prompt_format=format_)
        assert PointwisePrompts(cut, pieces).build(past, "Film 9").dropped == dropped


def test_other_formats_keep_their_model(make: Callable[..., Config]) -> None:
    config = parse_config({**make().model_dump(), "prompt_format": "chat"}, "test")
    loaded = load_model(config, silent)
    assert for_answers(config, loaded, Words(), silent) is loaded
