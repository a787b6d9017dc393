"""Forms in fewer bits, made from the merged 16-bit model: 4 bits of bitsandbytes, and GGUF."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rectune.errors import ModelError, ResourceError
from rectune.export.clients import ask_gguf, ask_llama_cpp, ask_merged, ask_opened, open_merged
from rectune.export.forms import HALF, Handed, Trained, affordable, checked, compared, free, released, save_merged
from rectune.export.gguf import F16, Q4_K_M, Q8_0, GgufWeights, check_architecture, modelfile, write_gguf
from rectune.export.gguf_tokenizer import pre_tokenisation
from rectune.export.pairs import Pairs
from rectune.export.parity import Floats, Parity
from rectune.export.prompt_template import start_text
from rectune.export.quantise import check_quantiser, has_llama_cpp, quantise
from rectune.export.targets import GGUF, MERGED_4BIT
from rectune.export.tokenizer import save_tokenizer
from rectune.export.weights import check_quantised
from rectune.score.open_run import OpenRun

Say = Callable[[str], None]

_BITS = {F16: 16, Q8_0: 8, Q4_K_M: 4}


def check_bitsandbytes() -> None:
    """Refuse 4 bits where bitsandbytes is not installed.

    Raises:
        ResourceError: it is missing.
    """
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise ResourceError("--to merged-4bit needs bitsandbytes, which is not installed: pip install bitsandbytes")


def _check_merge(run: OpenRun, whole: Path, pairs: Pairs, must: Trained, say: Say) -> None:
    """Check the merged model itself: behind what fewer bits move, a wrong merge could hide.

    Raises:
        ModelError: it does not answer as the trained model.
    """
    asked = ask_merged(whole, pairs.texts, run.prompts.verbalizer, run.loaded.device)
    checked("the merged model, by transformers", compared(asked, must, pairs), HALF, say)
    free()


def _widened(model: Any, name: str, _merged: torch.Tensor) -> torch.Tensor | None:
    """A weight of a model in NF4, as it is multiplied with."""
    from bitsandbytes.functional import dequantize_4bit

    weight = model.get_parameter(name)
    state = getattr(weight, "quant_state", None)
    found: torch.Tensor = weight.data if state is None else dequantize_4bit(weight.data, state)
    return found


def export_4_bits(
    handed: Handed, folder: Path, pairs: Pairs, trained: Trained, say: Say, accept_loss: bool
) -> dict[str, Parity]:
    """A whole model in 4 bits: merged in 16 bits first, and only then quantised (NF4, double quantisation)."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    run, whole = handed.pop(), folder / "whole"
    merged = save_merged(run, whole, pairs, trained, say)
    device, run = run.loaded.device, released(run)
    free()
    _check_merge(run, whole, pairs, merged.must, say)
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        whole, quantization_config=settings, dtype="auto", device_map={"": str(device)}
    )
    model.save_pretrained(folder)
    del model
    save_tokenizer(run.loaded.tokenizer, folder)
    free()
    model, what = open_merged(folder, device), "merged-4bit, by transformers"
    check_quantised(what, partial(_widened, model), whole, merged.changes, 4, say)
    shutil.rmtree(whole)
    asked = ask_opened(model, folder, pairs.texts, run.prompts.verbalizer)
    return {"transformers": affordable(what, compared(asked, merged.must, pairs), accept_loss, say)}


def check_packages(to: str, kinds: Sequence[str]) -> None:
    """Refuse a form whose packages are not installed, before anything is loaded.

    Args:
        to: the form asked for.
        kinds: of a GGUF.

    Raises:
        ResourceError: bitsandbytes or llama.cpp is missing.
    """
    if to == MERGED_4BIT:
        check_bitsandbytes()
    if to == GGUF and Q4_K_M in kinds:
        check_quantiser()


def check_gguf(run: OpenRun) -> None:
    """Refuse what cannot become a GGUF, before anything is computed.

    Raises:
        ModelError: the architecture or the tokenizer is one that cannot be written.
    """
    check_architecture(run.model.get_base_model().config)
    pre_tokenisation(run.loaded.tokenizer)


def export_gguf(
    handed: Handed,
    folder: Path,
    pairs: Pairs,
    trained: Trained,
    say: Say,
    accept_loss: bool,
    kinds: Sequence[str],
) -> dict[str, Parity]:
    """A GGUF of each kind, and a Modelfile for Ollama that names the first."""
    run, whole = handed.pop(), folder / "whole"
    merged = save_merged(run, whole, pairs, trained, say)
    run = released(run)
    free()
    if F16 not in kinds:
        _check_merge(run, whole, pairs, merged.must, say)
    title = f"{Path(run.settings.base_model.removeprefix('wheel:')).name} {run.config.dataset_name()} rectune"
    begins = bool(start_text(run.prompts.pieces))
    files = {kind: folder / f"model-{kind}.gguf" for kind in kinds}
    for kind in (F16, Q8_0):
        if kind in kinds or (kind == F16 and Q4_K_M in kinds):
            write_gguf(whole, files.get(kind, whole / "f16.gguf"), kind, title, begins)
    if Q4_K_M in kinds:
        quantise(files.get(F16, whole / "f16.gguf"), files[Q4_K_M])
    found = {}
    for kind, file in files.items():
        check_quantised(f"gguf {kind}", GgufWeights(file, whole), whole, merged.changes, _BITS[kind], say)
        what, asked = _ask(run, file, whole, kind, pairs)
        compare = compared(asked, merged.must, pairs)
        found[kind] = checked(what, compare, HALF, say) if kind == F16 else affordable(what, compare, accept_loss, say)
    shutil.rmtree(whole)
    first = next(iter(files.values())).name
    (folder / "Modelfile").write_text(modelfile(first, run.config.cutoff_len), encoding="utf-8")
    return found


def _ask(run: OpenRun, file: Path, whole: Path, kind: str, pairs: Pairs) -> tuple[str, Floats]:
    """What a GGUF answers, and who was asked.

    Raises:
        ModelError: llama.cpp finds other tokens in a prompt than those trained on.
    """
    words = run.prompts.verbalizer
    if has_llama_cpp():
        asked, tokens = ask_llama_cpp(file, pairs.texts, words)
        plain = pairs.trees.plain()
        for number, ids in enumerate(tokens):
            if not pairs.marked[number] and ids != plain.tree_tokens(number).tolist():
                raise ModelError(
                    f"{file.name}: llama.cpp reads the prompt {pairs.texts[number][-60:]!r} in other tokens than those "
                    "trained on; nothing was exported"
                )
        what = f"gguf {kind}, by llama.cpp"
    else:
        what = f"gguf {kind}, weights by transformers (llama-cpp-python is not installed, so llama.cpp was not asked)"
        asked = ask_gguf(file, whole, pairs.texts, words, run.loaded.device)
    return what, asked
