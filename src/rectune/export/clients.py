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


def _shared(ids: Sequence[int], before: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike; at least one of the first is left to ask."""
    alike = next((at for at, (one, other) in enumerate(zip(ids, before, strict=False)) if one != other), len(before))
    return min(alike, len(ids) - 1)


def _causal(model: Any, tokenizer: Any, texts: Sequence[str], words: Verbalizer) -> Floats:
    """Log-odds of the label words behind each text, from the model's own logits at its last token.

    What a prompt shares with the one before it is not computed again, as servers keep it: a user's prompts follow each
    other, and in the stream layout each is the one before and a few lines more.
    """
    from transformers import DynamicCache

    kept = DynamicCache()
    found: list[float] = []
    before: list[int] = []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text).input_ids
            alike = _shared(ids, before)
            if before[alike:]:
                kept.crop(alike - len(before))
            rest = torch.tensor([ids[alike:]], device=model.device)
            logits = model(input_ids=rest, past_key_values=kept, use_cache=True, logits_to_keep=1).logits[0, -1].float()
            found.append(float(logits[words.positive_id] - logits[words.negative_id]))
            before = ids
    return np.array(found, dtype=np.float64)


def open_merged(folder: Path, device: torch.device) -> Any:
    """A whole model out of a folder by transformers, in 16 or in 4 bits."""
    quiet_libraries()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map={"": str(device)}).eval()
    _keep_4_bits(model)
    return model


def ask_opened(model: Any, folder: Path, texts: Sequence[str], words: Verbalizer) -> Floats:
    """Log-odds by a model of `open_merged`, with the tokenizer of its folder."""
    from transformers import AutoTokenizer

    return _causal(model, AutoTokenizer.from_pretrained(folder), texts, words)


def ask_merged(folder: Path, texts: Sequence[str], words: Verbalizer, device: torch.device) -> Floats:
    """Log-odds by transformers, from a folder with a whole model, in 16 or in 4 bits."""
    return ask_opened(open_merged(folder, device), folder, texts, words)


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
    found: list[float] = []
    before: list[int] = []
    for ids in tokens:
        model.n_tokens = _shared(ids, before)
        model.eval(ids[model.n_tokens :])
        before = ids
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), shape=(model.n_vocab(),))
        found.append(float(logits[words.positive_id]) - float(logits[words.negative_id]))
    return np.array(found, dtype=np.float64), tokens
