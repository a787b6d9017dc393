"""What of a model's architecture decides its memory and its arithmetic, read without its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rectune.config import Config
from rectune.errors import ModelError
from rectune.model.initial import held_rank
from rectune.model.load import read_model_config

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_QV = ("q_proj", "v_proj")


class UnknownShape(ModelError):  # noqa: N818
    """A model whose memory cannot be planned; it may well be trained."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes:
        blocks, hidden, inner, vocabulary: number of blocks; width of the residual stream and of the feed-forward layer.
        query, key: width of all query heads together, and of all key heads.
        heads: query heads.
        linear: (inputs, outputs) of each linear layer of a block, by name.
        parameters: of the whole model, a tied head counted once.
        linear_parameters: weights of the blocks' linear layers, which quantisation makes smaller.
        head_norms: whether queries and keys are normalised in each head, as in Qwen3.
    """

    blocks: int
    hidden: int
    inner: int
    vocabulary: int
    query: int
    key: int
    heads: int
    linear: dict[str, tuple[int, int]]
    parameters: int
    linear_parameters: int
    head_norms: bool

    @classmethod
    def of(cls, settings: Any) -> ModelShape:
        """The shape of a model of the Llama family from its transformers configuration; no weight is made or read.

        Raises:
            UnknownShape: its blocks are no such blocks.
        """
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings)
        layers = getattr(getattr(model, model.base_model_prefix), "layers", None)
        linear = {
            name.rpartition(".")[2]: (module.in_features, module.out_features)
            for name, module in (layers[0].named_modules() if layers is not None else ())
            if isinstance(module, torch.nn.Linear)
        }
        if layers is None or any(name not in linear for name in (*_ATTENTION, "up_proj", "down_proj")):
            raise UnknownShape(
                f"{settings.model_type}: its memory cannot be planned, since its blocks are not those of the Llama "
                "family (q_proj, k_proj, v_proj, o_proj, up_proj, down_proj)"
            )
        return cls(
            blocks=len(layers),
            hidden=linear["q_proj"][0],
            inner=linear["up_proj"][1],
            vocabulary=model.get_output_embeddings().out_features,
            query=linear["q_proj"][1],
            key=linear["k_proj"][1],
            heads=settings.num_attention_heads,
            linear=linear,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            linear_parameters=sum(
                module.weight.numel() for module in layers.modules() if isinstance(module, torch.nn.Linear)
            ),
            head_norms=any("q_norm" in name for name, _ in layers[0].named_modules()),
        )

    def adapted_blocks(self, config: Config) -> list[int]:
        """Indices of the blocks that carry an adapter."""
        if config.lora_layers == "all":
            return list(range(self.blocks))
        if config.lora_layers == "upper_half":
            return list(range(self.blocks // 2, self.blocks))
        return sorted(index for index in config.lora_layers if index < self.blocks)

    def targets(self, config: Config) -> dict[str, tuple[int, int]]:
        """The linear layers of a block that carry an adapter."""
        shorthand = {"all": tuple(self.linear), "attention": _ATTENTION, "qv": _QV}
        wanted = shorthand[config.lora_target] if isinstance(config.lora_target, str) else config.lora_target
        return {name: sizes for name, sizes in self.linear.items() if name in wanted}

    def adapter_sizes(self, config: Config) -> list[int]:
        """Numbers in each trained matrix: A and B of every target, and with DoRA its magnitudes."""
        rank = held_rank(config)
        block = [
            size
            for inputs, outputs in self.targets(config).values()
            for size in (rank * inputs, rank * outputs, *([outputs] if config.use_dora else []))
        ]
        return block * len(self.adapted_blocks(config))

    def training_flops(self, config: Config, tokens: float, pairs: float, places: float) -> float:
        """Floating-point operations of training on these tokens, each multiply-add counted as two.

        The frozen layers forward, and backward by the input down to the lowest adapted block; the adapter's forward
        and both its gradients; attention; the head where a loss is taken; with checkpointing a second forward.

        Args:
            config: the adapter and checkpointing.
            tokens: in the rows.
            pairs: (query, key) pairs that may see each other.
            places: where a loss is taken over the vocabulary.
        """
        adapted = self.adapted_blocks(config)
        backward = self.blocks - (adapted[0] if adapted else self.blocks)
        again = backward if config.gradient_checkpointing else 0
        block = sum(inputs * outputs for inputs, outputs in self.linear.values())
        per_token = 2 * block * (self.blocks + backward + again) + 6 * sum(self.adapter_sizes(config))
        per_pair = 4 * self.query * (self.blocks + 2 * backward + again)
        return tokens * per_token + pairs * per_pair + places * 4 * self.hidden * self.vocabulary


def model_shape(config: Config, say: Callable[[str], None]) -> ModelShape:
    """The shape of a configuration's model; of a folder only `config.json` is read.

    Raises:
        ModelError, ResourceError: it is missing, damaged, out of reach or of another family.
    """
    return ModelShape.of(read_model_config(config, say))
