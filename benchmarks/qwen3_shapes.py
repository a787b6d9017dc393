"""Published shapes of Qwen3, for models with random weights and for sums that need no weights."""

from __future__ import annotations

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "qwen3-8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}
"""Of the published config.json files; the first two tie their embeddings."""


def qwen3_config(name: str, words: int = 151936) -> Any:
    """The transformers configuration of a shape.

    Args:
        name: a key of `SHAPES`.
        words: rows of the vocabulary.
    """
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=words, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=name != "qwen3-8b",
        **SHAPES[name],
    )  # fmt: skip
