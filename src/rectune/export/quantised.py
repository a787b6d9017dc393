"""Forms in fewer bits, made from the merged 16-bit model: 4 bits of bitsandbytes, and GGUF."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rectune.errors import ModelError, ResourceError
from rectune.export.clients import ask_gguf, ask_llama_cpp, ask_merged
from rectune.export.forms import HALF, Trained, checked, compared, free, released, save_merged
from rectune.export.gguf import F16, Q4_K_M, Q8_0, check_architecture, modelfile, write_gguf
from rectune.export.gguf_tokenizer import pre_tokenisation
from rectune.export.pairs import Pairs
from rectune.export.parity import Parity, Tolerance
from rectune.export.prompt_template import start_text
from rectune.export.quantise import check_quantiser, has_llama_cpp, quantise
from rectune.export.targets import GGUF, MERGED_4BIT
from rectune.export.tokenizer import save_tokenizer
from rectune.score.open_run import OpenRun

Say = Callable[[str], None]

EIGHT_BITS = Tolerance(share=0.25, floor=0.1, rank=0.93)
"""Of q8_0, where llama.cpp rounds what flows through the model to 8 bits too: SmolLM2-135M was 15 % off, rank
correlation 0.984."""
FOUR_BITS = Tolerance(share=0.6, floor=0.1, rank=0.9)
"""Of forms in 4 bits, which are other models than the one that was trained. The order has to stay; in NF4 that of
SmolLM2-135M did not (0.858, 47 % off), and larger models lose less."""
_TOLERANCE = {F16: HALF, Q8_0: EIGHT_BITS, Q4_K_M: FOUR_BITS}


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


def export_4_bits(run: OpenRun, folder: Path, pairs: Pairs, trained: Trained, say: Say) -> dict[str, Parity]:
    """A whole model in 4 bits: merged in 16 bits first, and only then quantised (NF4, double quantisation)."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    whole = folder / "whole"
    must = save_merged(run, whole, pairs, trained, say)
    device, run = run.loaded.device, released(run)
    free()
    _check_merge(run, whole, pairs, must, say)
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
    shutil.rmtree(whole)
    free()
    asked = ask_merged(folder, pairs.texts, run.prompts.verbalizer, device)
    return {"transformers": checked("merged-4bit, by transformers", compared(asked, must, pairs), FOUR_BITS, say)}


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
    run: OpenRun, folder: Path, pairs: Pairs, trained: Trained, say: Say, kinds: Sequence[str]
) -> dict[str, Parity]:
    """A GGUF of each kind, and a Modelfile for Ollama that names the first."""
    whole = folder / "whole"
    must = save_merged(run, whole, pairs, trained, say)
    run = released(run)
    free()
    if F16 not in kinds:
        _check_merge(run, whole, pairs, must, say)
    title = f"{Path(run.settings.base_model.removeprefix('wheel:')).name} {run.config.dataset_name()} rectune"
    begins = bool(start_text(run.prompts.pieces))
    files = {kind: folder / f"model-{kind}.gguf" for kind in kinds}
    for kind in (F16, Q8_0):
        if kind in kinds or (kind == F16 and Q4_K_M in kinds):
            write_gguf(whole, files.get(kind, whole / "f16.gguf"), kind, title, begins)
    if Q4_K_M in kinds:
        quantise(files.get(F16, whole / "f16.gguf"), files[Q4_K_M])
    found = {kind: _ask(run, file, whole, kind, pairs, must, say) for kind, file in files.items()}
    shutil.rmtree(whole)
    first = next(iter(files.values())).name
    (folder / "Modelfile").write_text(modelfile(first, run.config.cutoff_len), encoding="utf-8")
    return found


def _ask(run: OpenRun, file: Path, whole: Path, kind: str, pairs: Pairs, must: Trained, say: Say) -> Parity:
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
    return checked(what, compared(asked, must, pairs), _TOLERANCE[kind], say)
