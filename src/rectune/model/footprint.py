"""What a training run holds in memory, by component, worked out from the model's shape and the configuration.

The figures for activations are those of the tensors that autograd keeps for the backward pass, counted one by one
for blocks of the Llama family under our kernels; `tests/model/test_footprint.py` counts them on a real backward graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from rectune.config import Config
from rectune.model import blocks
from rectune.model.initial import FROM_BASE, held_rank
from rectune.model.shape import ModelShape

_GIB = 1 << 30
CUDA_CONTEXT = 0.5 * _GIB
"""What CUDA itself takes on a card; not measured here, some 0.4 to 0.6 GiB are usual."""
CUDA_SLACK = 0.06
"""Share of activations and workspace that PyTorch's caching allocator loses to rounding; assumed, not measured."""
_QUERIES = 128
"""Queries of a block of our CPU kernel."""


@dataclass(frozen=True)
class Rows:
    """What one forward pass holds at most.

    Attributes:
        count: rows.
        length: tokens of the longest row, to which all are padded.
        answers: answers of all rows together.
        masked: whether the rows need a mask (several prompts in one, or branches).
    """

    count: int
    length: int
    answers: int
    masked: bool

    @property
    def tokens(self) -> int:
        """Places of the batch."""
        return self.count * self.length


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak.

    Attributes:
        parts: component → bytes; their sum is the peak of training.
        evaluation: the peak of an evaluation during training.
        full_logits: what logits at every place of the batch would have taken in place of `parts["logits"]`.
    """

    parts: dict[str, int]
    evaluation: int
    full_logits: int

    @property
    def training(self) -> int:
        """The peak of a training step."""
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        """The larger of both peaks."""
        return max(self.training, self.evaluation)


@dataclass(frozen=True)
class Memory:
    """The model of a run's memory.

    Attributes:
        config: adapter, optimiser, quantisation and checkpointing keys are read.
        shape: of the model.
        device: `cpu`, `cuda` or `mps`.
        width: bytes of a number of the base model's precision.
        kernel: the attention kernel, as transformers knows it.
        resident: bytes that the program holds before a model is there: on a CPU Python with its libraries and the
            data, on CUDA the card's context.
        slack: share of activations and workspace that the allocator loses.
        processes: how many train together; what is worked out is what each of them holds.
        sharded: whether they share the blocks' weights among them.
    """

    config: Config
    shape: ModelShape
    device: str
    width: int
    kernel: str
    resident: int
    slack: float
    processes: int = 1
    sharded: bool = False

    # --- what stays ---

    def weights(self) -> int:
        """The frozen base model. What is quantised are the blocks' linear layers; embedding, norms and head are not."""
        shape, linear = self.shape, self.shape.linear_parameters
        rest = (shape.parameters - linear) * self.width
        layers = shape.blocks * len(shape.linear)
        if self.config.quantization_bit == 8:
            rows = shape.blocks * sum(outputs for _, outputs in shape.linear.values())
            return rest + linear + 4 * rows  # a float32 scale for each output
        if not self.config.use_qlora and self.config.quantization_bit is None:
            if self.sharded:  # beside its part, a block that computes and one that is being fetched
                return rest + self.width * (ceil(linear / self.processes) + 2 * linear // shape.blocks)
            return rest + linear * self.width
        # NF4: half a byte a weight; a scale of one byte for 64 weights, and one of four for 256 such scales (double
        # quantisation); a table of 256 and one of 16 float32 for each layer (Dettmers et al. 2023, section 3).
        return rest + ceil(linear / 2) + ceil(linear / 64) + 4 * ceil(linear / 64 / 256) + layers * 4 * (256 + 16)

    def adapter(self) -> int:
        """The trained matrices in float32, and where autocast computes in 16 bits their copies."""
        size = sum(self.shape.adapter_sizes(self.config))
        return size * (4 + (self.width if self.width < 4 else 0))

    def gradients(self) -> int:
        """Gradients of the adapter, and with `auto_batch` those of earlier micro-batches beside them.

        Several processes add theirs in one message, which takes as much when those of earlier micro-batches are gone.
        """
        twice = self.processes > 1 or (self.config.auto_batch and self.config.gradient_accumulation_steps > 1)
        return 4 * sum(self.shape.adapter_sizes(self.config)) * (2 if twice else 1)

    def optimiser(self) -> int:
        """AdamW's two moments: float32, or 8 bits with a scale for each 256 in matrices of at least 4,096 numbers.

        Beside them PiSSA and OLoRA keep a copy of where they started, half of the adapter.
        """
        sizes = self.shape.adapter_sizes(self.config)
        start = 2 * sum(sizes) if self.config.init_lora_weights in FROM_BASE else 0
        if "8bit" not in self.config.optim:
            return 8 * sum(sizes) + start
        return start + sum(8 * size if size < 4096 else 2 * (size + 4 * ceil(size / 256)) for size in sizes)

    # --- what a pass holds ---

    def mask(self, rows: Rows) -> int:
        """The dense mask, and what making it takes; none for kernels that mask by themselves."""
        dense = rows.count * rows.length**2
        if self.kernel == "flex_attention":
            return 16 * rows.count * (rows.length // _QUERIES + 1) ** 2 if rows.masked else 0
        if not rows.masked and self.kernel in ("sdpa", "flash_attention_2"):
            return 0
        return dense * self.width

    def _attention_matrix(self, rows: Rows) -> int:
        """What attention keeps of its probabilities in one block of the model."""
        heads, length = rows.count * self.shape.heads, rows.length
        if self.kernel == blocks.KERNEL:
            whole, rest = divmod(length, _QUERIES)
            seen = _QUERIES * _QUERIES * whole * (whole + 1) // 2 + rest * length
            return heads * seen * self.width
        if self.kernel == "eager":  # softmax in float32, and its result in the model's precision
            return heads * length**2 * (4 + (self.width if self.width < 4 else 0))
        return 4 * heads * length  # fused kernels keep the sum of each row

    def _block(self, rows: Rows, adapted: bool) -> int:
        """What one block keeps for the backward pass."""
        shape, width, config = self.shape, self.width, self.config
        plain = not rows.masked and self.kernel in ("sdpa", "flash_attention_2")
        shared = plain or self.kernel == "flex_attention"  # heads of keys are not repeated
        keys = 2 * (shape.key if shared else shape.query)
        numbers = shape.query + keys + 3 * shape.inner
        exact = 2 * shape.hidden + (shape.query + shape.key if shape.head_norms else 0)
        targets = shape.targets(config) if adapted else {}
        fused = self.kernel not in (blocks.KERNEL, "eager")
        if fused:
            numbers += shape.query  # its output, which the output projection's adapter shares
        squares = noise = 0
        if config.lora_dropout or config.use_dora:  # each adapter has an input of its own
            numbers += sum(inputs for inputs, _ in targets.values())
            if config.lora_dropout:
                each = 1 if self.device == "cuda" else width
                noise = each * sum(inputs for inputs, _ in targets.values())
        else:
            numbers += shape.hidden * (not targets.keys().isdisjoint(("q_proj", "k_proj", "v_proj")))
            numbers += shape.hidden * (not targets.keys().isdisjoint(("gate_proj", "up_proj")))
            numbers += shape.query * ("o_proj" in targets and not fused) + shape.inner * ("down_proj" in targets)
        if config.use_dora:  # the base's and the adapter's product, and an identity matrix for each layer's norm
            numbers += 2 * sum(outputs for _, outputs in targets.values())
            squares = width * sum(inputs * inputs for inputs, _ in targets.values())
        numbers += held_rank(config) * len(targets)
        return rows.tokens * (width * numbers + 4 * exact + noise) + squares + self._attention_matrix(rows)

    def activations(self, rows: Rows) -> int:
        """What is kept between forward and backward: of the blocks from the lowest adapted one upwards.

        With checkpointing each of them keeps its input, and one at a time all of its own.
        """
        adapted = self.shape.adapted_blocks(self.config)
        if not adapted:
            return 0
        upper = self.shape.blocks - adapted[0]
        if self.config.gradient_checkpointing:
            return upper * rows.tokens * self.shape.hidden * self.width + self._block(rows, True)
        # The lowest block's first norm keeps nothing, since its input is not trained; the one above all blocks does.
        return len(adapted) * self._block(rows, True) + (upper - len(adapted)) * self._block(rows, False)

    def logits(self, places: int) -> int:
        """Logits over the vocabulary with their loss and its gradient: kept in float32, and two such beside it."""
        return 12 * places * self.shape.vocabulary

    def _places(self, answers: int) -> int:
        """Where a loss is taken over the whole vocabulary, in two calls where the end token is trained too."""
        words = 0 if self.config.loss_over == "labels" or self.config.prompt_format == "classifier" else answers
        return words + (answers if self.config.ends_answers else 0)

    def workspace(self, rows: Rows) -> int:
        """What the backward pass of one block takes beside what was kept: gradients on their way, a weight unpacked."""
        shape, width = self.shape, self.width
        feed_forward = rows.tokens * (width * (4 * shape.inner + 2 * shape.hidden) + 8 * shape.hidden)
        attention = rows.tokens * width * (5 * shape.query + 2 * shape.hidden)
        if self.kernel == blocks.KERNEL:
            attention += 3 * rows.count * shape.heads * _QUERIES * rows.length * width
        if self.kernel == "eager":
            attention += 2 * self._attention_matrix(rows)
        most = max(inputs * outputs for inputs, outputs in shape.linear.values())
        quantised = self.config.use_qlora or self.config.quantization_bit is not None
        return max(feed_forward, attention) + (most * width if quantised else 0)

    def evaluation(self, rows: Rows) -> int:
        """What scoring a batch takes: one block without anything kept, and logits of two words only."""
        shape, width = self.shape, self.width
        each = width * (3 * shape.inner + 5 * shape.query + 4 * shape.hidden) + 8 * shape.hidden
        matrix = 0
        if self.kernel == blocks.KERNEL:
            matrix = 3 * rows.count * shape.heads * min(_QUERIES, rows.length) * rows.length * width
        if self.kernel == "eager":
            matrix = 2 * self._attention_matrix(rows)
        return rows.tokens * each + matrix + self.mask(rows)

    # --- the whole ---

    def footprint(self, rows: Rows, scored: Rows | None) -> Footprint:
        """The peaks of a run.

        Args:
            rows: the largest micro-batch of training.
            scored: the largest batch of an evaluation; None where there is none.
        """
        places = self._places(rows.answers)
        kept, moving, head = self.activations(rows), self.workspace(rows), self.logits(places)
        parts = {
            "weights": self.weights(),
            "adapter": self.adapter(),
            "gradients": self.gradients(),
            "optimiser": self.optimiser(),
            "activations": kept,
            "logits": head,
            "mask": self.mask(rows),
            # The head's backward pass is over when that of the blocks begins, so only the larger of the two counts.
            "workspace": max(0, moving - head),
            "allocator slack": int(self.slack * (kept + max(moving, head))),
            "program": self.resident,
        }
        evaluation = 0
        if scored is not None:
            standing = sum(parts[name] for name in ("weights", "adapter", "optimiser", "program"))
            evaluation = standing + int((1 + self.slack) * self.evaluation(scored))
        return Footprint(parts, evaluation, self.logits(rows.tokens))
