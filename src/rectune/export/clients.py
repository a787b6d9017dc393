"""Foreign clients: programs that know nothing of rectune load an export and ask it, prompt by prompt, as strings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rectune.prompt.verbalizer import Verbalizer
from rectune.quiet import quiet_libraries

Floats = npt.NDArray[np.float64]
_BATCH = 8
"""Prompts that the classifier is asked at once: padding is part of what is checked."""


def _causal(model: Any, tokenizer: Any, texts: Sequence[str], words: Verbalizer) -> Floats:
    """Log-odds of the label words behind each text, from the model's own logits at its last token."""
    found = []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
            logits = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[0, -1].float()
            found.append(float(logits[words.positive_id] - logits[words.negative_id]))
    return np.array(found, dtype=np.float64)


def ask_merged(folder: Path, texts: Sequence[str], words: Verbalizer, device: torch.device) -> Floats:
    """Log-odds by transformers, from a folder with a whole model, in 16 or in 4 bits."""
    quiet_libraries()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map={"": str(device)}).eval()
    _keep_4_bits(model)
    return _causal(model, AutoTokenizer.from_pretrained(folder), texts, words)


def _keep_4_bits(model: Any) -> None:
    """Switch off bitsandbytes' repacking of 4-bit weights on CPUs with AVX-512, which rounds them once more."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def ask_adapter(base: Any, folder: Path, texts: Sequence[str], words: Verbalizer) -> Floats:
    """Log-odds by plain PEFT on a base model, as an adapter's folder says."""
    quiet_libraries()
    from peft import PeftModel
    from transformers import AutoTokenizer

    model = PeftModel.from_pretrained(base, folder).eval()
    with torch.autocast(base.device.type, base.dtype, enabled=base.dtype != torch.float32):
        return _causal(model, AutoTokenizer.from_pretrained(folder), texts, words)


def ask_classifier(folder: Path, texts: Sequence[str], device: torch.device) -> Floats:
    """The one number of each text by transformers' sequence classification, in padded batches."""
    quiet_libraries()
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype="auto", device_map={"": str(device)}
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = np.empty(len(texts), dtype=np.float64)
    order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
    with torch.inference_mode():
        for first in range(0, len(order), _BATCH):
            chosen = order[first : first + _BATCH]
            batch = tokenizer([texts[at] for at in chosen], return_tensors="pt", padding=True)
            kept = {name: value.to(model.device) for name, value in batch.items() if name != "token_type_ids"}
            found[chosen] = model(**kept, use_cache=False).logits[:, 0].float().cpu().double().numpy()
    return found


def ask_gguf(file: Path, whole: Path, texts: Sequence[str], words: Verbalizer, device: torch.device) -> Floats:
    """Log-odds by transformers' reader of GGUF, which widens its weights.

    Its reader of tokenizers knows only some rules for words, and that of configurations no size of heads, so these two
    come from the model that the file was made of.

    Args:
        file: the GGUF.
        whole: the merged model that it was made of.
        texts, words: the prompts, and the label tokens.
        device: where to ask.
    """
    quiet_libraries()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, config=AutoConfig.from_pretrained(whole), dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True), device_map={"": str(device)},
    )  # fmt: skip
    return _causal(model.eval(), AutoTokenizer.from_pretrained(whole), texts, words)


def ask_llama_cpp(file: Path, texts: Sequence[str], words: Verbalizer) -> tuple[Floats, list[list[int]]]:
    """Log-odds by llama.cpp itself, and the tokens that it found in each text."""
    import llama_cpp

    from rectune.export.quantise import silence

    silence()
    vocabulary = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    tokens = [vocabulary.tokenize(text.encode(), add_bos=True, special=True) for text in texts]
    longest = max(map(len, tokens)) + 1
    model = llama_cpp.Llama(str(file), n_ctx=longest, n_batch=longest, verbose=False)
    found = []
    for ids in tokens:
        model.reset()
        model.eval(ids)
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), shape=(model.n_vocab(),))
        found.append(float(logits[words.positive_id]) - float(logits[words.negative_id]))
    return np.array(found, dtype=np.float64), tokens
