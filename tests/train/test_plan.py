"""The plan of a run: what `rectune plan` says, what `train` refuses, and what a rehearsal finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from rectune.cli import main
from rectune.config import Config
from rectune.errors import ModelError, ResourceError
from rectune.model.shape import model_shape
from rectune.train.dry_run import dry_run
from rectune.train.halving import Halving
from rectune.train.pace import estimate_pace
from rectune.train.plan import GIB, Machine, Plan, planned
from rectune.train.remedies import largest_batch, remedies
from rectune.train.shortage import shortages
from rectune.train.workload import bounded_workload

QUIET = Console(quiet=True)
Make = Callable[..., Config]


def on_card(config: Config, gib: float) -> Plan:
    return Plan(config, model_shape(config, print), bounded_workload(config), Machine.of(config, gib))


@pytest.fixture
def wide(tmp_path: Path) -> str:
    """A folder with nothing but the configuration of a Qwen3 of 8 billion parameters."""
    from transformers import Qwen3Config

    Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
    ).save_pretrained(tmp_path / "wide")  # fmt: skip
    return str(tmp_path / "wide")


def test_the_weights_of_eight_billion_parameters_are_planned_from_a_config_file_alone(wide: str, make: Make) -> None:
    config = make(model_name_or_path=wide, use_qlora=True, lora_target="qv", bf16="auto")
    plan = on_card(config, 24)
    # Qwen3-8B: 8.19 billion parameters; q and v at rank 16 are 36 x 16 x (4096 + 4096 + 4096 + 1024) = 7.67 million.
    assert plan.shape.parameters == 8_190_735_360
    assert sum(plan.shape.adapter_sizes(config)) == 7_667_712
    weights = plan.footprint().parts["weights"] / GIB
    assert weights == pytest.approx(2 * 151936 * 4096 * 2 / GIB + 36 * 192_937_984 * (0.5 + 1 / 64) / GIB, rel=0.01)
    assert plan.fits and plan.largest_batch() > 2


def test_of_the_changes_the_least_harmful_that_is_enough_is_marked(wide: str, make: Make) -> None:
    config = make(model_name_or_path=wide, use_qlora=True, bf16="auto", per_device_train_batch_size=8, cutoff_len=1024)
    need = on_card(config, 24)
    one = on_card(config.with_overrides(per_device_train_batch_size=1), 24).total(
        config.with_overrides(per_device_train_batch_size=1)
    )
    room = one / GIB + 0.1
    assert not on_card(config, room).fits
    found = need.remedies() if not need.fits else on_card(config, room).remedies()
    marked = [remedy for remedy in on_card(config, room).remedies() if remedy.least]
    assert found and len(marked) == 1
    assert marked[0].changes == {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}
    # Where one row is too much as well, checkpointing is next; where nothing alone is enough, several together.
    tight = on_card(config, one / GIB - 0.5).remedies()
    assert next(remedy for remedy in tight if remedy.least).changes == {"gradient_checkpointing": True}


def test_where_no_single_change_is_enough_a_smallest_set_is_found() -> None:
    cost = {"per_device_train_batch_size": 4, "gradient_checkpointing": 10, "use_qlora": 20}

    def total(config: Config) -> int:
        saved = cost["gradient_checkpointing"] * config.gradient_checkpointing + cost["use_qlora"] * config.use_qlora
        return 100 + 4 * config.per_device_train_batch_size - saved

    config = Config(per_device_train_batch_size=2, cutoff_len=256, lora_target="qv", lora_rank=8)
    assert total(config) == 108
    found = remedies(config, total, 73)  # all three together come to 74
    assert not any(remedy.least for remedy in found) and found[-1].total == 74 and not found[-1].fits
    enough = remedies(config, total, 74)[-1]
    assert enough.least and len(enough.changes) == 4
    last = remedies(config, total, 78)[-1]
    assert last.least and last.changes == {"gradient_checkpointing": True, "use_qlora": True}
    assert largest_batch(config, total, 116, "per_device_train_batch_size") == 4
    assert largest_batch(config, total, 103, "per_device_train_batch_size") == 0


def test_changes_are_planned_whatever_a_sweep_would_vary(wide: str, make: Make) -> None:
    space = {"per_device_train_batch_size": [2, 4], "lora_rank": [16, 32], "gradient_accumulation_steps": [2, 4]}
    config = make(model_name_or_path=wide, bf16="auto", sweep=space)
    plan = on_card(config, 24)
    assert plan.remedies() == on_card(config.with_overrides(sweep={}), 24).remedies()
    assert any(remedy.changes == {"lora_rank": 8} for remedy in plan.remedies())
    assert plan.largest_batch() == on_card(config.with_overrides(sweep={}), 24).largest_batch()
    assert "run again with" in plan.advice()


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_a_change_that_another_key_forbids_is_not_proposed(wide: str, make: Make, kind: str) -> None:
    plan = on_card(make(model_name_or_path=wide, bf16="auto", init_lora_weights=kind), 12)
    assert not plan.fits and "gradient_checkpointing=true" in plan.refusal() and "use_qlora" not in plan.refusal()
    assert "use_qlora" not in plan.advice()
    assert "use_qlora=true" in on_card(make(model_name_or_path=wide, bf16="auto"), 12).refusal()


@pytest.mark.parametrize("command", [["plan"], ["train", "--dry-run"], ["inspect"]], ids=" ".join)
def test_commands_that_change_keys_for_themselves_take_a_configuration_with_a_sweep(
    command: list[str], make: Make, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    space = {"per_device_train_batch_size": [2, 4], "warmup_ratio": [0.03, 0.1], "cutoff_len": [256, 512]}
    file.write_text(make(sweep=space).to_yaml(), encoding="utf-8")
    _run([command[0], str(file), *command[1:]])


def test_the_plan_of_a_second_training_is_that_of_the_adapter_it_goes_on_from(make: Make, tmp_path: Path) -> None:
    told = {"r": 4, "target_modules": ["v_proj", "q_proj"], "layers_to_transform": [1], "use_dora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told | {"lora_dropout": 0.0}), encoding="utf-8")
    config = make(adapter_name_or_path=str(tmp_path), lora_rank=64, init_lora_weights="pissa", weight_decay=0.0)
    plan = planned(config, bounded_workload(config), Machine.of(config, 24), False, print)
    # q and v of the tiny model are 32 x 32 and 32 x 16: 4 x (64 + 48) numbers in one of its two blocks.
    assert plan is not None and sum(plan.shape.adapter_sizes(plan.config)) == 448
    changed = {key for remedy in replace(plan, machine=Machine.of(config, 0.1)).remedies() for key in remedy.changes}
    assert changed and not any(key.startswith("lora_") for key in changed)
    (tmp_path / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"adapter_config\.json: damaged"):
        planned(config, bounded_workload(config), Machine.of(config, 24), False, print)


def test_the_pace_of_a_classifier_counts_no_vocabulary(make: Make) -> None:
    for keys, places in (({"prompt_format": "classifier"}, 0), ({}, 2), ({"loss_over": "labels"}, 1)):
        config = make(**keys)
        shape, side = model_shape(config, print), bounded_workload(config).training
        flops = 4 * shape.training_flops(config, side.mean, side.mean_pairs, places)  # 2 rows, twice a step
        pace = estimate_pace(config, shape, bounded_workload(config), torch.device("cpu"), torch.float32, 1.0)
        assert pace.step_seconds == pytest.approx(flops / 0.42e12)


def test_one_of_eight_processes_is_planned_with_its_part_and_their_steps(
    wide: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make(
        model_name_or_path=wide, bf16="auto", max_steps=-1, per_device_train_batch_size=2,
        gradient_accumulation_steps=3, dataset_dir=str(tmp_path / "none"),
    )  # fmt: skip
    (tmp_path / "given.yaml").write_text(config.to_yaml(), encoding="utf-8")
    asked = ["plan", str(tmp_path / "given.yaml"), "--memory-gib", "24", "--json"]
    found = {}
    for name, more in (("one", []), ("whole", ["--processes", "8"]), ("sharded", ["--processes", "8", "--sharded"])):
        _run([*asked, *more])
        found[name] = json.loads(capsys.readouterr().out)
    one, whole, sharded = (found[name] for name in ("one", "whole", "sharded"))
    assert one["sequences_per_step"] == 6 and whole["sequences_per_step"] == sharded["sequences_per_step"] == 48
    assert whole["tokens_per_step"] == 8 * one["tokens_per_step"]
    assert whole["estimate"]["seconds_per_step"] == one["estimate"]["seconds_per_step"]
    assert whole["parts"]["weights"] == one["parts"]["weights"]
    # An eighth of 36 blocks of 192.9 million numbers and two whole ones, in place of all of them.
    saved = whole["parts"]["weights"] - sharded["parts"]["weights"]
    assert saved == pytest.approx(2 * 192_937_984 * (36 - 36 / 8 - 2), rel=1e-6)
    for wrong, said in ((["--sharded"], "--sharded: does nothing"), (["--processes", "8", "--sharded"], "use_qlora")):
        with pytest.raises(SystemExit) as end:
            main([*asked, *wrong, "use_qlora=true"])
        assert end.value.code == 2 and said in capsys.readouterr().err


def test_plan_prints_a_table_and_as_json_the_same_figures(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(make(dataset_dir=str(tmp_path / "none")).to_yaml(), encoding="utf-8")
    _run(["plan", str(file), "--tflops", "0.5"])
    shown = capsys.readouterr().out
    for part in ("weights", "adapter", "gradients", "optimiser", "activations", "logits", "mask", "workspace"):
        assert part in shown
    assert "cutoff_len=256, an upper bound" in shown and "estimate: " in shown and "0.5 TFLOP/s as given" in shown
    _run(["plan", str(file), "--json", "--tflops", "0.5"])
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["total"] == max(found["training"], found["evaluation"])
    assert found["training"] == sum(found["parts"].values())
    assert found["longest_row"] == 256
    assert not (tmp_path / "none").exists()


def _run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code in (0, None)


def test_train_refuses_what_cannot_fit_and_goes_on_when_told(
    make: Make, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Machine.of

    def small(config: Config, memory_gib: float | None = None, **_: Any) -> Machine:
        found = real(config, memory_gib)
        return replace(found, room=found.resident + 1_000_000)

    monkeypatch.setattr(Machine, "of", small)
    with pytest.raises(ResourceError) as caught:
        run(max_steps=1)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("memory: this run needs about") and "--ignore-plan" in lines[0]
    assert any("per_device_train_batch_size=1 gradient_accumulation_steps=4" in line for line in lines[1:])
    from rectune.train.train import train

    said: list[str] = []
    train(make(max_steps=1), said.append, QUIET, ignore_plan=True)
    assert "plan: it does not fit; going on regardless, as --ignore-plan asks" in said


def test_a_shortage_is_explained_from_the_plan(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rectune.train import trainer

    def greedy(*arguments: Any, **named: Any) -> torch.Tensor:
        return torch.empty(1 << 50, dtype=torch.uint8)

    monkeypatch.setattr(trainer, "hidden_at", greedy)
    with pytest.raises(ResourceError, match=r"out of memory on cpu; .* planned were \d\.\d\d GiB \(program") as caught:
        run(max_steps=1, auto_batch=False)
    assert "\n" not in str(caught.value) and "at a time" not in str(caught.value)
    with pytest.raises(ResourceError, match=r"no checkpoint was saved yet.* GiB with 1 row at a time \(") as caught:
        run(max_steps=1, overwrite=True)
    assert "checkpoints" not in str(caught.value)  # none is there that a change could suit or not


@pytest.mark.parametrize(
    ("rows", "change"),
    [
        (None, "per_device_train_batch_size=4 gradient_accumulation_steps=4"),
        (3, "per_device_train_batch_size=1 gradient_accumulation_steps=16"),  # of 8, 2 is what 3 hold
        (1, "gradient_checkpointing=true"),  # a smaller batch is no advice where one row has failed
    ],
)
def test_the_advice_of_a_shortage_knows_what_has_been_tried(
    rows: int | None, change: str, wide: str, make: Make, tmp_path: Path
) -> None:
    config = make(model_name_or_path=wide, use_qlora=True, bf16="auto", per_device_train_batch_size=8, cutoff_len=1024)
    (tmp_path / "run" / "checkpoint-4").mkdir(parents=True)
    halving = Halving(True, print)
    halving.rows = rows
    with (
        pytest.raises(ResourceError, match=r"the last checkpoint is whole\. .*, and --resume$") as caught,
        shortages("cuda", on_card(config, 24), tmp_path / "run", halving),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert f"run again with {change}, planned at" in str(caught.value)


@pytest.mark.parametrize("kept", [True, False])
def test_a_shortage_in_an_evaluation_is_told_as_one(run: Any, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from rectune.score import scorer

    real, passes = scorer.hidden_at, []

    def greedy(*arguments: Any, **named: Any) -> torch.Tensor:
        passes.append(1)
        if kept is False or len(passes) > 1:  # the first scores what the untrained model says
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, **named)

    monkeypatch.setattr(scorer, "hidden_at", greedy)
    stands = "the last checkpoint is whole" if kept else "no checkpoint was saved yet"
    with pytest.raises(ResourceError, match=rf"^out of memory on cpu; {stands}\. In an evaluation .planned") as caught:
        run(max_steps=2, eval_steps=2, save_steps=1)
    assert "set per_device_eval_batch_size=8, and run again with --resume" in str(caught.value)


def test_what_fits_in_parts_is_not_refused_with_auto_batch(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rectune.train import train

    real = train.planned

    def tight(config: Config, work: Any, machine: Machine, ignore: bool, say: Any) -> Plan | None:
        plan = Plan(config, model_shape(config, say), work, machine)
        two, three = (plan.total(config.with_overrides(per_device_train_batch_size=rows)) for rows in (2, 3))
        assert two < three
        return real(config, work, replace(machine, room=(two + three) // 2), ignore, say)

    monkeypatch.setattr(train, "planned", tight)
    keys = {"max_steps": 1, "save_steps": 1, "eval_strategy": "no", "per_device_train_batch_size": 4}
    with pytest.raises(ResourceError, match="per_device_train_batch_size=2 gradient_accumulation_steps=4"):
        run(**keys, auto_batch=False)
    folder, lines = run(**keys, overwrite=True)
    assert any(line.startswith("plan: 4 rows at once do not fit, 2 do; auto_batch computes micro-") for line in lines)
    assert json.loads((folder / "checkpoint-1" / "micro_batch.json").read_text()) == {"rows": 2}


def test_on_a_card_halves_wait_until_memory_runs_out(wide: str, make: Make) -> None:
    config = make(model_name_or_path=wide, use_qlora=True, bf16="auto", per_device_train_batch_size=8, cutoff_len=1024)
    need = on_card(config, 24).total(config.with_overrides(per_device_train_batch_size=3)) / GIB
    assert on_card(config, need).in_parts().startswith("8 rows at once do not fit, 3 do; auto_batch computes micro-")
    assert "in halves where memory does run out" in on_card(config, need).in_parts()
    assert on_card(config.with_overrides(auto_batch=False), need).in_parts() == ""
    assert on_card(config, 1).in_parts() == "" and on_card(config, 800).in_parts() == ""


def test_what_the_loss_finds_wrong_is_said_before_the_model_is_loaded(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rectune.train import train

    def enough(*_arguments: Any, **_named: Any) -> None:
        raise ModelError("far enough")

    monkeypatch.setattr(train, "load_for_training", enough)
    lines: list[str] = []
    with pytest.raises(ModelError, match="far enough"):
        train.train(make(class_weights=[1.0, 3.0]), lines.append, QUIET)
    assert any(line.startswith("loss: a No weighs ") for line in lines)


def test_run_has_the_option_that_its_refusal_names(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rectune.train import train

    real = Machine.of
    monkeypatch.setattr(Machine, "of", lambda config, gib=None, **_: replace(real(config, gib), room=1_000_000))

    def enough(*_arguments: Any, **_named: Any) -> None:
        raise ModelError("far enough")

    monkeypatch.setattr(train, "load_for_training", enough)
    (tmp_path / "config.yaml").write_text(make(max_steps=1).to_yaml(), encoding="utf-8")
    for more, said in (([], "go on regardless with --ignore-plan"), (["--ignore-plan"], "far enough")):
        with pytest.raises(SystemExit):
            main(["run", str(tmp_path / "config.yaml"), *more])
        assert said in capsys.readouterr().err


def test_a_rehearsal_trains_saves_and_loads_again_and_leaves_nothing(make: Make, tmp_path: Path) -> None:
    lines: list[str] = []
    config = make(max_steps=50, lora_dropout=0.0)
    dry_run(config, lines.append, QUIET)
    assert not config.output_dir.exists()
    assert any(line.endswith("scores after the reload equal those before the save, row by row") for line in lines)
    assert any(line.startswith("dry run: P(yes) ") for line in lines)
    assert any(line.startswith("dry run: peak ") and "GiB planned" in line for line in lines)
    assert lines[-1] == "dry run: all well, and nothing was kept"


def test_a_rehearsal_notices_an_adapter_that_comes_back_changed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from rectune.errors import ModelError
    from rectune.score import open_run

    real = open_run.load_adapter

    def worn(model: Any, folder: Path, trainable: bool = False) -> Any:
        adapted = real(model, folder, trainable)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(1.5)
        return adapted

    monkeypatch.setattr(open_run, "load_adapter", worn)
    with pytest.raises(ModelError, match="the reloaded adapter's scores differ"):
        dry_run(make(), lambda line: None, QUIET)
