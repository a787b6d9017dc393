"""A tiny random Qwen3 with Qwen3's special tokens and template, and a small MovieLens folder."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rectune.config import Config, parse_config
from rectune.quiet import quiet_libraries

quiet_libraries()
# The tiny model's matrices are too small to share: several threads would only wait for each other. So would polars'.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")

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


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    """Fast tests never touch the user's cache; slow ones share it, since they fetch real files."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def qwen3_tokenizer() -> Any:
    """A byte-level tokenizer of about 600 tokens with Qwen3's pre-tokenisation, special tokens and chat template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    builder = load_script("build_qwen_tokenizer")
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(builder.PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    text = ["Yes No Yes No Answer: Will the user like the candidate film? rating 4.0 (1995) The user's last films"] * 9
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(text, trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in builder.SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in builder.ADDED])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = builder.chat_template()
    return tokenizer


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory, qwen3_tokenizer: Any) -> Path:
    """A folder with a random two-layer Qwen3 and its tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("tiny-qwen3")
    torch.manual_seed(0)
    settings = Qwen3Config(
        vocab_size=len(qwen3_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=qwen3_tokenizer.eos_token_id,
    )
    Qwen3ForCausalLM(settings).save_pretrained(folder)
    qwen3_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def movielens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MovieLens folder of 12 users, 30 films and 26 ratings each, some at the same second."""
    folder = tmp_path_factory.mktemp("ml-tiny")
    films = ["movieId,title,genres"]
    films += [f'{number},"Film {number}, The ({1980 + number})",Drama|Comedy' for number in range(1, 31)]
    (folder / "movies.csv").write_text("\n".join(films) + "\n", encoding="utf-8")
    draw = random.Random(0)
    ratings = ["userId,movieId,rating,timestamp"]
    for user in range(1, 13):
        for at, film in enumerate(draw.sample(range(1, 31), 26)):
            # The odd films are good, and one film in five shares its second with the one before.
            rating = draw.choice([4.0, 4.5, 5.0] if film % 2 else [1.0, 2.5, 3.5])
            ratings.append(f"{user},{film},{rating},{1000 * user + at - (at % 5 == 4)}")
    (folder / "ratings.csv").write_text("\n".join(ratings) + "\n", encoding="utf-8")
    return folder


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
