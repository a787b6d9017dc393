"""A tiny random Qwen3 with Qwen3's special tokens and template, and a small MovieLens folder."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from rectune.config import Config, parse_config
from rectune.quiet import quiet_libraries

quiet_libraries()
# The tiny model's matrices are too small to share: several threads would only wait for each other. So would polars'.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")

# On a busy machine hypothesis would call a test too slow, or an example late, that is neither.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

REPO = Path(__file__).parent.parent


def load_script(name: str) -> Any:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, REPO / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--integration-model-path", help="Run the integration tests on this model (hub name or folder).")
    parser.addoption("--integration-config-path", help="Take the model of the integration tests from this config.")


@pytest.fixture(autouse=True, scope="session")
def _a_terminal_to_lose() -> None:
    """Tests started under nohup ignore SIGHUP, and their children would; some test what it does."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    """Fast tests never touch the user's cache; slow ones share it, since they fetch real files."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


_FILMS = {
    1: "Toy Story (1995)", 3: "Four Rooms (1995)", 100: "Fargo (1996)", 127: "Godfather, The (1972)",
    183: "Alien (1979)", 273: "Heat (1995)", 573: "Body Snatchers (1993)", 670: "Body Snatchers (1993)",
}  # fmt: skip


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MovieLens folder of 12 users and 30 films, some with real titles, 26 ratings each."""
    folder = tmp_path_factory.mktemp("ml-films")
    known = _FILMS | {number: f"Film {number}, The ({1980 + number})" for number in range(11, 33)}
    rows = ["movieId,title,genres", *(f'{number},"{title}",Drama' for number, title in known.items())]
    (folder / "movies.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    draw = random.Random(1)
    ratings = ["userId,movieId,rating,timestamp"]
    for user in range(1, 13):
        for at, film in enumerate(draw.sample(sorted(known), 26)):
            ratings.append(f"{user},{film},{draw.choice([1.0, 2.5, 4.0, 4.5, 5.0])},{1000 * user + at}")
    (folder / "ratings.csv").write_text("\n".join(ratings) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def nursery_script() -> Any:
    """What starts command lines in processes of their own, to be killed."""
    return load_script("nursery")


@pytest.fixture(scope="session")
def qwen3_tokenizer() -> Any:
    """A byte-level tokenizer of about 600 tokens with Qwen3's pre-tokenisation, special tokens and chat template."""
    return load_script("build_tiny_qwen3").tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory, qwen3_tokenizer: Any) -> Path:
    """A folder with a random two-layer Qwen3 and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-qwen3")
    load_script("build_tiny_qwen3").write_tiny_qwen3(folder, qwen3_tokenizer)
    return folder


@pytest.fixture(scope="session")
def movielens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MovieLens folder of 12 users, 30 films and 26 ratings each, some at the same second."""
    folder = tmp_path_factory.mktemp("ml-tiny")
    load_script("build_tiny_qwen3").write_movielens(folder)
    return folder


@pytest.fixture(scope="session")
def save_random_run() -> Callable[[Config], Path]:
    """Writes the run folder of a configuration with a random adapter, as training leaves it."""

    def save(config: Config) -> Path:
        import torch

        from rectune.model.load import load_model
        from rectune.model.lora import attach_adapter
        from rectune.prompt.dataset import open_dataset
        from rectune.prompt.layouts import prompts_for
        from rectune.prompt.pieces import Pieces
        from rectune.score.settings import settings_of

        def silent(_line: str) -> None:
            """Say nothing."""

        data = open_dataset(config, silent)
        loaded = load_model(config, silent)
        torch.manual_seed(5)
        model = attach_adapter(loaded.model, config, loaded.source, None)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.normal_(std=0.05)
        run = config.output_dir
        model.save_pretrained(run)
        words = prompts_for(config, Pieces(loaded.tokenizer)).verbalizer
        settings_of(config, words, loaded.source, None, "float32", data.content_hash, data.events).save(run)
        (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        return run

    return save


@pytest.fixture(scope="session")
def tiny_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path, movielens: Path, save_random_run: Callable[..., Path]
) -> Path:
    """A run folder of single prompts."""
    root = tmp_path_factory.mktemp("tiny-run")
    values = {
        "model_name_or_path": str(tiny_qwen3), "layout": "pointwise", "dataset": str(movielens),
        "dataset_dir": str(root / "data"), "output_dir": str(root / "run"), "report_to": "none", "bf16": False,
        "preprocessing_cache_dir": str(root / "cache"), "per_device_eval_batch_size": 4,
    }  # fmt: skip
    return save_random_run(parse_config(values, origin="test"))


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_qwen3: Path, movielens: Path) -> Callable[..., Config]:
    """Makes pointwise configurations on the tiny model and data, all output under the test's own folder."""

    def make(**values: Any) -> Config:
        base: dict[str, Any] = {
            "model_name_or_path": str(tiny_qwen3),
            "layout": "pointwise",
            "dataset": str(movielens),
            "dataset_dir": str(tmp_path / "data"),
            "output_dir": str(tmp_path / "run"),
            "preprocessing_cache_dir": str(tmp_path / "cache"),
            "bf16": False,
            "report_to": "none",
            "baselines": "quick",
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 8,
            "eval_steps": 4,
            "save_steps": 4,
            "logging_steps": 2,
            "learning_rate": 0.01,
        }
        return parse_config({**base, **values}, origin="test")

    return make
