"""Exports answer as the run they were made from, to a client that knows nothing of rectune."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import MakeRun, card_says, own_probability, silent

from rectune.errors import ConfigError, ModelError
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
@pytest.mark.parametrize("keys", [{}, {"use_rslora": True}, {"init_lora_weights": "pissa"}], ids=str)
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


def test_four_bits_are_quantised_from_the_merged_model_and_refused_where_they_move_too_much(
    stream_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model has too few weights for 4 bits."""
    from rectune.export import quantised
    from rectune.export.parity import Tolerance

    pytest.importorskip("bitsandbytes")
    with pytest.raises(ModelError, match="merged-4bit, by transformers: does not answer as the trained model"):
        export(stream_run, [], "merged-4bit", tmp_path / "out", silent)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(quantised, "FOUR_BITS", Tolerance(share=9, floor=0, rank=-1))
    folder, _ = exported(stream_run, "merged-4bit", tmp_path / "out")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert settings["bnb_4bit_quant_type"] == "nf4" and settings["bnb_4bit_use_double_quant"]
    assert not (folder / "whole").exists() and (folder / "tokenizer.json").is_file()


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
        (["--to", "merged", "history_len=3"], 4, "history_len: got 3, but the adapter was trained with 5"),
        (["--to", "merged", "--push-to-hub", "films"], 2, "--push-to-hub: got 'films', allowed: OWNER/NAME"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["export", str(stream_run), *arguments, "--output", str(tmp_path / "no")])
        said = capsys.readouterr().err
        assert stopped.value.code == code and message in said and said.count("\n") == 1
    assert not (tmp_path / "no").exists()
