"""Weights & Biases, MLflow and trackio hold the figures of log.jsonl; nothing leaves the machine."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerCallback

from rectune.config import Config
from rectune.errors import ResourceError
from rectune.train.start import Resume
from rectune.train.trackers import check_trackers
from rectune.train.train import train

Run = Callable[..., tuple[Path, list[str]]]
KEYS: dict[str, Any] = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1}
Points = dict[tuple[str, int], float]


def logged(folder: Path) -> Points:
    """Name and step of every number in log.jsonl, evaluations under `eval/` and the rest under `train/`."""
    found: Points = {}
    for line in (folder / "logs" / "log.jsonl").read_text(encoding="utf-8").splitlines():
        log = json.loads(line)
        step = log.pop("step")
        for name, value in log.items():
            if name not in ("epoch", "train_runtime", "train_samples_per_second", "train_steps_per_second",
                            "train_loss", "total_flos"):  # fmt: skip
                found[f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}", step] = value
    return found


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> pytest.MonkeyPatch:
    """Without anything that a user's environment may say about trackers, and trackio's folder among the tests'."""
    # trackio reads it once, when it is imported.
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path_factory.getbasetemp() / "trackio"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME",
                 "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Records of a log in LevelDB's format, W&B's offline file: blocks of 32 KiB, pieces of checksum, length, type."""
    at, record = 7, b""  # its own header: magic and version
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def wandb_points(folder: Path) -> list[Points]:
    """What each offline entry of W&B holds, oldest first."""
    from wandb.proto.wandb_internal_pb2 import Record

    entries = []
    for file in sorted(
        (folder / "logs" / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime
    ):
        points: Points = {}
        for data in leveldb_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                named = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                step = int(json.loads(named.pop("train/global_step")))
                points.update({(name, step): json.loads(value) for name, value in named.items() if "/" in name})
        entries.append(points)
    return entries


def test_wandb_offline_holds_the_figures_of_the_log_also_after_a_resume(
    run: Run, no_environment: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    folder, lines = run(**KEYS, report_to="wandb")
    assert any("Weights & Biases, offline" in line for line in lines)
    want = logged(folder)
    assert {("train/loss", 1), ("eval/auc", 4)} <= set(want)
    (first,) = wandb_points(folder)
    assert {key: first[key] for key in want} == pytest.approx(want, nan_ok=True)

    run(Resume(checkpoint=folder / "checkpoint-2"), **KEYS, report_to="wandb")
    want = logged(folder)
    second = wandb_points(folder)[-1]
    assert {key: second[key] for key in want} == pytest.approx(want, nan_ok=True)


class Crash(TrainerCallback):
    """Ends a run in its second step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            raise RuntimeError("crashed")


def test_a_run_that_fails_is_marked_as_failed(
    make: Callable[..., Config], no_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    mlflow = pytest.importorskip("mlflow")
    from wandb.proto.wandb_internal_pb2 import Record

    config = make(**KEYS, report_to=["mlflow", "wandb"])
    with pytest.raises(RuntimeError, match="crashed"):
        train(config, lambda _: None, Console(quiet=True), watchers=[Crash()])
    logs = config.output_dir.resolve() / "logs"
    client = mlflow.MlflowClient(f"sqlite:///{logs / 'mlflow.db'}")
    (entry,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert entry.info.status == "FAILED"
    (file,) = (logs / "wandb").glob("offline-run-*/*.wandb")
    records = [Record.FromString(data) for data in leveldb_records(file.read_bytes())]
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [1]


def test_mlflow_in_the_run_folder_holds_the_figures_of_the_log_also_after_a_resume(
    run: Run, no_environment: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")

    def points(folder: Path) -> list[Points]:
        client = mlflow.MlflowClient(f"sqlite:///{folder.resolve() / 'logs' / 'mlflow.db'}")
        (experiment,) = [found for found in client.search_experiments() if found.name == "rectune"]
        entries = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
        assert all(entry.info.status == "FINISHED" for entry in entries)
        assert all(entry.data.params["rectune/lora_rank"] == "16" for entry in entries)
        found: list[Points] = []
        for entry in entries:
            found.append({})
            for name in set(entry.data.metrics) - {"epoch"}:  # which both lines of a step have
                for metric in client.get_metric_history(entry.info.run_id, name):
                    key = f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
                    assert (key, metric.step) not in found[-1]
                    found[-1][key, metric.step] = metric.value
        return found

    folder, lines = run(**KEYS, report_to=["mlflow"])
    assert any(line.startswith("watch: mlflow ui --backend-store-uri sqlite:///") for line in lines)
    want = logged(folder)
    (first,) = points(folder)
    assert {key: first[key] for key in want} == pytest.approx(want)
    assert not mlflow.is_tracking_uri_set()

    run(Resume(checkpoint=folder / "checkpoint-2"), **KEYS, report_to=["mlflow"])
    want = logged(folder)
    assert {key: points(folder)[-1][key] for key in want} == pytest.approx(want)


def test_trackio_holds_the_figures_of_the_log_also_after_a_resume(run: Run, no_environment: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    def points() -> list[Points]:
        with sqlite3.connect(sqlite_storage.SQLiteStorage.get_project_db_path("rectune")) as database:
            rows = database.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
        found: dict[str, Points] = {}
        for name, text in rows:
            values = json.loads(text)
            step = int(values.pop("train/global_step"))
            found.setdefault(name, {}).update({(key, step): value for key, value in values.items()})
        return list(found.values())

    folder, lines = run(**KEYS, report_to="trackio")
    assert "watch: trackio show --project rectune" in lines
    want = logged(folder)
    first = points()[-1]
    assert {key: first[key] for key in want} == pytest.approx(want)

    run(Resume(checkpoint=folder / "checkpoint-2"), **KEYS, report_to="trackio")
    want = logged(folder)
    assert {key: points()[-1][key] for key in want} == pytest.approx(want)


@pytest.mark.parametrize(
    ("name", "packages"),
    [("wandb", "wandb"), ("mlflow", "mlflow-skinny and sqlalchemy and alembic"), ("trackio", "trackio")],
)
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(
    make: Callable[..., Config], no_environment: pytest.MonkeyPatch, name: str, packages: str
) -> None:
    no_environment.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ResourceError) as caught:
        check_trackers(make(report_to=["none"] if name == "none" else name))
    install = packages.replace(" and ", " ")
    assert str(caught.value) == (
        f"report_to: {name} needs {packages}, which is not installed: pip install {install}, or set "
        "report_to=tensorboard"
    )


def test_nothing_is_imported_that_was_not_asked_for(run: Run, no_environment: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def guarded(name: str, *rest: Any) -> Any:
        assert name.partition(".")[0] not in ("wandb", "mlflow", "trackio"), name
        return real(name, *rest)

    no_environment.setattr(builtins, "__import__", guarded)
    run(max_steps=1, eval_strategy="no", save_steps=1, logging_steps=1)
