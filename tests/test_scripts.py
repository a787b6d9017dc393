"""The fronts under the older script names: every documented command starts and ends as `rectune` itself would."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from rectune.cli import reported
from rectune.errors import DataError
from rectune.files import hash_file
from rectune.report.analyze import analyze, example_lines

REPO = Path(__file__).parent.parent
FRONTS = (
    "prepare_movielens", "check_seq_len", "finetune_lora", "infer_lora", "compare_base_vs_lora", "analyze_differences",
)  # fmt: skip


class Ended(NamedTuple):
    """How a script ended."""

    code: int
    out: str
    err: str


Front = Callable[..., Ended]


def load_script(name: str) -> Any:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, REPO / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def front(capsys: pytest.CaptureFixture[str]) -> Front:
    """Runs a script's own entry in this process."""

    def run(name: str, *arguments: object) -> Ended:
        script = load_script(name)
        words = [str(argument) for argument in arguments]
        capsys.readouterr()
        try:
            if name == "analyze_differences":
                reported(lambda: script.analyze_differences(words))
            else:
                reported(lambda: script.main(script.command(words)))
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def config(tmp_path: Path, tiny_qwen3: Path, movielens: Path) -> Path:
    """The shipped configuration with a tiny model in place of the hub's, small data and a short run."""
    values = yaml.safe_load((REPO / "configs" / "qwen3_movielens_qlora.yaml").read_text(encoding="utf-8"))
    values |= {
        "model_name_or_path": str(tiny_qwen3), "dataset": str(movielens), "dataset_dir": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "run"), "preprocessing_cache_dir": str(tmp_path / "cache"), "use_qlora": False,
        "bf16": False, "history_len": 3, "cutoff_len": 512, "max_steps": 2, "eval_steps": 1, "save_steps": 1,
        "learning_rate": 0.01, "warmup_ratio": 0.0,
    }  # fmt: skip
    file = tmp_path / "qwen3_movielens_qlora.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def trained(config: Path, front: Front, store: Path, tmp_path: Path) -> Path:
    """The run of `config`, trained once by the front."""
    if not (store / "run").exists():
        ended = front("finetune_lora", "--config", config, "--clear-cache")
        assert ended.code == 0, ended.err
        for name in ("run", "data", "cache"):
            shutil.copytree(tmp_path / name, store / name)
    for name in ("run", "data", "cache"):
        shutil.copytree(store / name, tmp_path / name, dirs_exist_ok=True)
    shutil.copyfile(config, tmp_path / "run" / "config.yaml")
    return tmp_path / "run"


def test_prepare_movielens_as_the_seeds_call_it(front: Front, movielens: Path, tmp_path: Path) -> None:
    ended = front(
        "prepare_movielens", "--output-dir", tmp_path / "data", "--history-len", 15, "--rating-threshold", 4.0,
        "--dataset", movielens,
    )  # fmt: skip
    assert ended.code == 0
    assert {"train.json", "eval.json", "test_raw.jsonl", "meta.json"} <= {
        path.name for path in (tmp_path / "data").iterdir()
    }
    meta = json.loads((tmp_path / "data" / "meta.json").read_text(encoding="utf-8"))
    assert meta["protocol"]["history_len"] == 15 and meta["protocol"]["rating_threshold"] == 4.0


def test_prepare_and_finetune_agree_on_the_folder(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    from rectune.config import load_config
    from rectune.shipped import find_config

    command = load_script("prepare_movielens").command([])
    assert command == [
        "prepare", "configs/qwen3_movielens_qlora.yaml", "history_len=15", "rating_threshold=4.0",
        "dataset=ml-latest-small",
    ]  # fmt: skip
    prepared = load_config(find_config(Path(command[1])), command[2:])
    assert prepared.dataset_folder() == Path("data/movielens_qwen3")
    for name in ("qwen3_movielens_qlora", "qwen3_7b_movielens_qlora"):
        assert load_config(find_config(Path(name))).dataset_folder() == prepared.dataset_folder()


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--show-examples", "2"], "EXAMPLE 2"),
        (["--show-examples", "0"], "LENGTHS of"),
        (["--max-samples", "10"], "LENGTHS of 10 training prompts"),
        (["--cutoff-len", "448"], "cutoff_len=448"),
        (["--char-only"], "in characters"),
        (["--percentiles", "50,90"], "p90:"),
        (["--show-examples", "0", "cutoff_len=320"], "cutoff_len=320"),
    ],
)
def test_check_seq_len_takes_every_documented_option(
    options: list[str], shown: str, front: Front, config: Path
) -> None:
    ended = front("check_seq_len", "--config", config, *options)
    assert ended.code == 0
    assert shown in ended.out


def test_finetune_resumes_and_extends_and_refuses(trained: Path, front: Front, config: Path) -> None:
    ended = front("finetune_lora", "--config", config)
    assert ended.code == 2 and "already holds a run" in ended.err
    ended = front("finetune_lora", "--config", config, "--resume_from_checkpoint", trained / "checkpoint-1")
    assert ended.code == 0 and "last completed step: 1" in ended.out
    ended = front("finetune_lora", "--config", config, "--resume", "--extra-epochs", 2)
    assert ended.code == 2 and "--extra-epochs: max_steps decides" in ended.err
    longer = ["max_steps=-1", "num_train_epochs=0.1", "save_steps=50"]
    ended = front("finetune_lora", "--config", config, "--resume", "--extra-epochs", 1, *longer)
    assert ended.code == 0 and "last completed step: 2\n  next step: 3" in ended.out
    ended = front("finetune_lora", "--config", config, "gen_eval_samples=2", "--overwrite", "max_steps=1")
    assert ended.code == 0 and "of 2 greedy answers" in ended.out


def test_finetune_takes_overrides_anywhere(front: Front) -> None:
    command = load_script("finetune_lora").command
    assert command(["--config", "a.yaml", "seed=1", "--resume", "max_steps=3"]) == [
        "train", "a.yaml", "seed=1", "max_steps=3", "--extra-epochs", "0", "--resume",
    ]  # fmt: skip


def test_infer_demo_shows_base_beside_tuned(trained: Path, front: Front) -> None:
    assert load_script("infer_lora").command([]) == ["score", "output/qwen3-movielens-qlora", "--demo"]
    ended = front("infer_lora", "--adapter_dir", trained)
    assert ended.code == 0
    assert "untuned: P(Yes)" in ended.out and "   tuned: P(Yes)" in ended.out


@pytest.mark.parametrize(("name", "mode"), [("test_raw.jsonl", "logits"), ("eval.json", "generate")])
def test_infer_batch_and_analyze_work_on_both_formats(
    name: str, mode: str, trained: Path, front: Front, tmp_path: Path
) -> None:
    ended = front(
        "infer_lora", "--test_file", tmp_path / "data" / name, "--output_dir", tmp_path / "infer", "--adapter_dir",
        trained, "--max_samples", 6, "--compare_base", "--mode", mode,
    )  # fmt: skip
    assert ended.code == 0
    assert {"lora_predictions.jsonl", "base_predictions.jsonl", "metrics_summary.json"} <= {
        path.name for path in (tmp_path / "infer").iterdir()
    }
    shown = front("analyze_differences", "--comparison_dir", tmp_path / "infer", "--examples", 3)
    assert shown.code == 0 and " of 6" in shown.out


def test_infer_batch_without_a_file_says_what_is_missing(front: Front, tmp_path: Path) -> None:
    ended = front("infer_lora", "--output_dir", tmp_path / "infer")
    assert ended.code == 2 and "--output_dir needs --test_file" in ended.err
    for option in (["--max_samples", "3"], ["--compare_base"], ["--mode", "logits"]):
        ended = front("infer_lora", *option)
        assert ended.code == 2 and f"{option[0]} needs --test_file" in ended.err


def test_compare_then_analyze(trained: Path, front: Front, config: Path, tmp_path: Path) -> None:
    ended = front("compare_base_vs_lora", "--config", config)
    assert ended.code == 0
    report = json.loads((trained / "comparison" / "comparison_report.json").read_text(encoding="utf-8"))
    shown = front("analyze_differences", "--comparison_dir", trained / "comparison")
    assert shown.code == 0
    counts = report["counts"]
    assert shown.out.splitlines()[-1] == (
        f"{counts['lora_improvements']} improvements, {counts['lora_regressions']} regressions, "
        f"{counts['both_wrong']} both wrong, {counts['both_right']} both right"
    )
    ended = front("compare_base_vs_lora", "--config", config, "--split", "validation", "--output_dir", tmp_path / "c")
    assert ended.code == 0 and (tmp_path / "c" / "comparison_report.json").is_file()


@pytest.mark.parametrize("name", FRONTS)
def test_every_front_explains_itself(name: str, front: Front) -> None:
    ended = front(name, "--help")
    assert ended.code == 0 and "usage:" in ended.out
    assert (REPO / "scripts" / f"{name}.py").read_text(encoding="utf-8").count(f"python scripts/{name}.py") >= 1


@pytest.mark.parametrize("name", FRONTS)
def test_a_wrong_configuration_run_or_folder_is_one_line(name: str, front: Front, tmp_path: Path) -> None:
    option = {"infer_lora": "--adapter_dir", "analyze_differences": "--comparison_dir"}.get(name, "--config")
    ended = front(name, option, tmp_path / "nowhere")
    assert ended.code in (2, 3, 4)
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1


def test_a_script_runs_by_itself_and_says_how_to_install_what_is_missing(tmp_path: Path) -> None:
    script = str(REPO / "scripts" / "compare_base_vs_lora.py")
    done = subprocess.run([sys.executable, script, "--config", "none.yaml"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: none.yaml: no such file")
    for name in FRONTS:
        # -S and -I leave out site-packages, so rectune cannot be imported.
        script = str(REPO / "scripts" / f"{name}.py")
        done = subprocess.run([sys.executable, "-S", "-I", script], capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr == "rectune is not installed here: pip install -e .\n"


# --- the look at disagreements, with rows worked out by hand ---


def rows(*scores: float, **more: Any) -> list[dict[str, Any]]:
    labels = [1, 0, 1, 0]
    return [
        {
            "row_id": at,
            "user_id": "u",
            "label": label,
            "score": score,
            "candidate_title": f"Film {at}",
            "history_titles": [str(number) for number in range(7)],
            **more,
        }
        for at, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]


def write(folder: Path, base: list[dict[str, Any]], tuned: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, table in (("base", base), ("lora", tuned)):
        text = "".join(json.dumps(row) + "\n" for row in table)
        (folder / f"{name}_predictions.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_disagreements_are_counted_and_shown_largest_first(tmp_path: Path) -> None:
    lines: list[str] = []
    # Row 0: wrong → right. Row 1: right → wrong. Row 2: both wrong. Row 3: both right.
    folder = write(tmp_path / "c", rows(0.2, 0.3, 0.4, 0.1), rows(0.9, 0.6, 0.1, 0.2))
    before = {path.name: hash_file(path) for path in folder.iterdir()}
    assert analyze(folder, 1, lines.append) == {"improvements": 1, "regressions": 1, "both wrong": 1, "both right": 1}
    assert "  candidate: Film 0" in lines and "  P(yes):    untuned 0.200, tuned 0.900" in lines
    assert "  history:   6, 5, 4, 3, 2, and 2 earlier ones" in lines
    assert {path.name: hash_file(path) for path in folder.iterdir()} == before
    # With a threshold of 0.65 the second row's 0.6 is right again.
    (folder / "comparison_report.json").write_text('{"threshold": 0.65}')
    assert analyze(folder, 0, lines.append)["regressions"] == 0


def test_a_training_record_shows_the_start_of_its_prompt() -> None:
    row = {"input": "x" * 400, "output": "No", "score": 0.4}
    assert example_lines(row, {**row, "score": 0.6})[0] == f"  prompt:    {'x' * 300}…"
    assert "  label:     No" in example_lines(row, row)


def test_predictions_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no base_predictions\.jsonl; run compare_base_vs_lora\.py"):
        analyze(tmp_path, 1, print)
    folder = write(tmp_path / "c", rows(0.1, 0.1, 0.1, 0.1), rows(0.1, 0.1, 0.1, 0.1)[:3])
    with pytest.raises(DataError, match="not of the same records"):
        analyze(folder, 1, print)
    write(folder, [{"candidate_title": "A", "score": 0.1}], [{"candidate_title": "A", "score": 0.2}])
    with pytest.raises(DataError, match="record 1: no label or score"):
        analyze(folder, 1, print)
    (folder / "comparison_report.json").write_text("{}")
    with pytest.raises(DataError, match=r"comparison_report\.json: damaged"):
        analyze(folder, 1, print)
