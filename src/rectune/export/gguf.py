"""A merged model as GGUF, llama.cpp's format, in f16 and q8_0; `quantise.py` makes smaller ones from the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rectune.errors import ModelError
from rectune.export.gguf_tokenizer import add_tokenizer

F16, Q8_0, Q4_K_M = "f16", "q8_0", "q4_k_m"
KINDS = (F16, Q8_0, Q4_K_M)
_ARCHITECTURES = {"LlamaForCausalLM": "LLAMA", "Qwen2ForCausalLM": "QWEN2", "Qwen3ForCausalLM": "QWEN3"}
_BLOCK = 32
"""Numbers of a row that q8_0 scales together; rows that are no multiple of it stay in f16."""

Array = npt.NDArray[Any]


def check_architecture(config: Any) -> str:
    """llama.cpp's name of a model's architecture.

    Raises:
        ModelError: it is one that this writer does not know.
    """
    name = (getattr(config, "architectures", None) or ["?"])[0]
    rope = getattr(config, "rope_parameters", None) or {}
    if name not in _ARCHITECTURES:
        known = ", ".join(key.removesuffix("ForCausalLM") for key in _ARCHITECTURES)
        raise ModelError(
            f"--to gguf: writes {known}, and this model is {name}; use --to merged, and llama.cpp's own converter"
        )
    for what, odd in (
        (f"positions of the kind {rope.get('rope_type')}", rope.get("rope_type", "default") != "default"),
        ("a sliding window", bool(getattr(config, "use_sliding_window", False))),
        ("biases in its feed-forward layers", bool(getattr(config, "mlp_bias", False))),
    ):
        if odd:
            raise ModelError(f"--to gguf: cannot write {what}; use --to merged, and llama.cpp's own converter")
    return _ARCHITECTURES[name]


def _permuted(weight: Array, heads: int) -> Array:
    """Rows of a query or key projection in the order in which llama.cpp's Llama rotates them: pairs side by side."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _weights(folder: Path) -> Iterator[tuple[str, Callable[[], Array]]]:
    """Name of every weight of a saved model and what reads it in float32, in the order of the files."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118

                def read(key: str = name, source: Path = file) -> Array:
                    with safe_open(source, "pt") as opened:
                        return np.asarray(opened.get_tensor(key).float().numpy())

                yield name, read


def _stored(name: str, weight: Array, kind: str) -> tuple[Array, Any]:
    """A weight as it lies in the file, and its type where that is not the array's own.

    Raises:
        ModelError: it is beyond what float16 can hold.
    """
    from gguf import GGMLQuantizationType, quants

    if weight.ndim == 1:
        return weight.astype(np.float32), None
    if kind == Q8_0 and weight.shape[-1] % _BLOCK == 0:
        return quants.quantize(weight, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16)
    if not np.isfinite(half).all():
        raise ModelError(
            f"--to gguf: {name} holds {np.abs(weight).max():.3g}, beyond the 65,504 that float16 can hold; "
            f"use --gguf-type {Q8_0}"
        )
    return half, None


def _add_shape(writer: Any, config: Any, kind: str) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType.MOSTLY_F16 if kind == F16 else LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def write_gguf(folder: Path, file: Path, kind: str, title: str, begins: bool) -> None:
    """Write a saved model with its tokenizer and chat template as GGUF, one weight at a time.

    Args:
        folder: a merged model as transformers saves it.
        file: where to write.
        kind: `f16` or `q8_0`; vectors stay in float32 in both.
        title: the model's name in the file.
        begins: whether the tokenizer puts a marker before any text by itself.

    Raises:
        ModelError: the architecture or the tokenizer is one that cannot be written, or a weight is too large for f16.
    """
    import gguf
    from transformers import AutoConfig, AutoTokenizer

    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    architecture = check_architecture(config)
    arch = gguf.MODEL_ARCH[architecture]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type("model")
    writer.add_name(title)
    _add_shape(writer, config, kind)
    add_tokenizer(writer, tokenizer, folder, config.vocab_size, begins)

    def each() -> Iterator[tuple[str, Array, Any]]:
        for name, read in _weights(folder):
            written = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if written is None:
                raise ModelError(f"--to gguf: {name} has no place in a GGUF of {architecture}")
            weight, heads = read(), _rotated_heads(architecture, config, name)
            yield (written, *_stored(name, weight if heads is None else _permuted(weight, heads), kind))

    # Twice over the weights, so that never more than one is in memory: first their shapes, then their content.
    for written, stored, raw in each():
        writer.add_tensor_info(written, stored.shape, stored.dtype, stored.nbytes, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, stored, _ in each():
        writer.write_tensor_data(stored)
    writer.close()


class GgufWeights:
    """The weights of a GGUF, widened, by the names that they have in the model it was made of.

    Args:
        file: the GGUF.
        folder: the merged model.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        import gguf
        from transformers import AutoConfig

        self._config = AutoConfig.from_pretrained(folder)
        self._architecture = check_architecture(self._config)
        arch = gguf.MODEL_ARCH[self._architecture]
        self._names = gguf.get_tensor_name_map(arch, self._config.num_hidden_layers)
        self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}

    def __call__(self, name: str, merged: Any) -> Any:
        """A weight in the shape of the merged one, its rows in that one's order; None where the file has none."""
        import torch
        from gguf import quants

        tensor = self._tensors.get(self._names.get_name(name, try_suffixes=(".weight", ".bias")) or "")
        if tensor is None:
            return None
        found = quants.dequantize(tensor.data, tensor.tensor_type).reshape(merged.shape)
        heads = self._heads(name)
        if heads is not None:
            # Where llama.cpp's order has put each row.
            found = found[np.argsort(_permuted(np.arange(len(found)), heads))]
        return torch.from_numpy(np.array(found, dtype=np.float32))

    def _heads(self, name: str) -> int | None:
        return _rotated_heads(self._architecture, self._config, name)


def _rotated_heads(architecture: str, config: Any, name: str) -> int | None:
    """Heads of a weight whose rows stand in llama.cpp's order of rotation; None where they keep theirs."""
    heads = {".self_attn.q_proj.": config.num_attention_heads, ".self_attn.k_proj.": config.num_key_value_heads}
    found = [count for part, count in heads.items() if part in name]
    return int(found[0]) if architecture == "LLAMA" and found else None


def modelfile(name: str, cutoff_len: int) -> str:
    """An Ollama Modelfile that hands the written prompt through as it is and answers with one token.

    >>> print(modelfile("model-q8_0.gguf", 512))
    FROM ./model-q8_0.gguf
    # The prompt is written by the client from scoring.json, special tokens included.
    TEMPLATE \"\"\"{{ .Prompt }}\"\"\"
    PARAMETER temperature 0
    PARAMETER num_predict 1
    PARAMETER num_ctx 520
    <BLANKLINE>
    """
    return (
        f"FROM ./{name}\n"
        "# The prompt is written by the client from scoring.json, special tokens included.\n"
        'TEMPLATE """{{ .Prompt }}"""\n'
        "PARAMETER temperature 0\n"
        "PARAMETER num_predict 1\n"
        f"PARAMETER num_ctx {cutoff_len + 8}\n"
    )
