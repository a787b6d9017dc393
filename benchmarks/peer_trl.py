"""TRL's SFTTrainer as the peer of train_speed.py: one timed run, and a recorded search for its fastest settings."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matmul_peak import Shapes, adapted_blocks, adapted_linear

Settings = dict[str, Any]

START: Settings = {
    "head": "labelled",  # see _head
    "dtype": "bfloat16",  # of the frozen weights
    "bf16": True,  # autocast
    "adapter_dtype": "float32",
    "attn_implementation": "sdpa",
    "per_device_train_batch_size": 4,
    "packing": False,
    "train_sampling_strategy": "random",
    "gradient_checkpointing": False,
    "torch_compile": False,
}
"""Where the search starts: what a user who reads the documentation would set, and the head as on a GPU."""

HEADS = {
    "labelled": "patched: the output head at labelled positions only, as TRL itself does on CUDA, and only there",
    "shipped": "as it comes: without Triton the head is computed at every position, forward and backward",
    "own loss": "as it comes, with compute_loss_func: the model's own logits, and the fused head without gradient",
}

DEFAULTS: Settings = {
    **START,
    "head": "shipped",
    "dtype": "float32",
    "per_device_train_batch_size": 8,
    "gradient_checkpointing": True,
}
"""What SFTConfig does when nothing is set and the model's files are float32; measured for the record."""

NOT_SEARCHED = {
    "loss_type": "nll only: chunked_nll is its deprecated alias, both compute the head in chunks; dft is another loss",
    "padding_free": "needs FlashAttention; packing switches it on by itself",
    "use_liger_kernel": "deprecated; its kernels are Triton's and need a GPU",
    "activation_offloading": "saves memory by copying, never faster",
    "dataloader_num_workers": "0: every example is tokenised before the first step",
}

_CHANGES: list[tuple[str, list[Settings]]] = [
    (
        "precision of weights and autocast",
        [{"dtype": "float32"}, {"bf16": False}, {"dtype": "float32", "bf16": False}],
    ),
    ("precision of the adapter", [{"adapter_dtype": "bfloat16"}, {"adapter_dtype": "bfloat16", "bf16": False}]),
    ("batch size", []),  # climbed, see _climb
    ("length grouping", [{"train_sampling_strategy": "group_by_length"}]),
    ("packing", [{"packing": True, "per_device_train_batch_size": size} for size in (1, 2, 4)]),
    ("attention", [{"attn_implementation": "eager"}]),
    ("gradient checkpointing", [{"gradient_checkpointing": True}]),
    ("head", [{"head": "shipped"}, {"head": "own loss"}]),
]
_SIZES = (1, 2, 4, 8, 16)


def timed_steps(settings: Settings, examples: int) -> int:
    """Steps that see at least `examples` examples, and two at least."""
    a_step: int = settings["per_device_train_batch_size"] * (2 if settings["packing"] else 1)
    return max(2, math.ceil(examples / a_step))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train for `steps` optimiser steps with SFTTrainer.

    Args:
        job: `settings`, `adapter`, `model`, `cutoff_len`, `records` (a JSON file of Alpaca records), `steps`, `seed`
            and `folder` to work in.

    Returns:
        The mean tokens of all examples, and the warnings TRL gave.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import SFTConfig, SFTTrainer

    from rectune.model.load import resolve_source

    settings, adapter = job["settings"], job["adapter"]
    source = resolve_source(job["model"], print)[0]
    conversations = _conversations(Path(job["records"]))
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    for name in ("trl", "transformers"):
        logging.getLogger(name).addHandler(handler)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, settings["dtype"]), attn_implementation=settings["attn_implementation"]
        )
        shapes = Shapes.of(model.config)
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=adapter["lora_rank"],
            lora_alpha=adapter["lora_alpha"],
            lora_dropout=adapter["lora_dropout"],
            target_modules=adapted_linear(adapter["lora_target"], shapes),
            layers_to_transform=adapted_blocks(adapter["lora_layers"], shapes.blocks),
        )
        set_seed(job["seed"])  # the adapter is drawn here
        model = get_peft_model(model, lora, autocast_adapter_dtype=settings["adapter_dtype"] == "float32")
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=str(Path(job["folder"]) / "trl"),
                max_length=job["cutoff_len"],
                max_steps=job["steps"],
                seed=job["seed"],
                completion_only_loss=True,
                packing=settings["packing"],
                packing_strategy="bfd",
                per_device_train_batch_size=settings["per_device_train_batch_size"],
                train_sampling_strategy=settings["train_sampling_strategy"],
                gradient_checkpointing=settings["gradient_checkpointing"],
                torch_compile=settings["torch_compile"],
                bf16=settings["bf16"],
                use_cpu=not torch.cuda.is_available(),
                dataloader_num_workers=0,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(conversations),
            compute_loss_func=_head(settings["head"]),
            processing_class=AutoTokenizer.from_pretrained(source),
        )
        lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
        mean = sum(lengths) / len(conversations)
        trainer.train()
    told = sorted({" ".join(text.split()) for text in [*heard, *(str(entry.message) for entry in warned)]})
    return {"sample_tokens_per_label": mean, "warnings": told}


def _head(kind: str) -> Any:
    """Set how SFTTrainer computes its loss (HEADS); what to pass as its `compute_loss_func`."""
    import torch
    from trl.trainer import utils

    if kind == "labelled":
        utils._use_triton = lambda device: True  # read in this module only to choose the positions

    def own_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        places = labels[:, 1:] != -100
        logits, targets = outputs.logits[:, :-1][places].float(), labels[:, 1:][places]
        total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return total / (len(targets) if num_items_in_batch is None else num_items_in_batch)

    return own_loss if kind == "own loss" else None


def _conversations(file: Path) -> list[dict[str, Any]]:
    """Alpaca records as TRL's conversational prompts and completions, with the words of rectune's own chat prompts."""
    rows = []
    for record in json.loads(file.read_text(encoding="utf-8")):
        user = "\n\n".join(part for part in (record["instruction"], record["input"]) if part)
        system = [{"role": "system", "content": record["system"]}] if record["system"] else []
        answer = {"role": "assistant", "content": record["output"]}
        rows.append({"prompt": [*system, {"role": "user", "content": user}], "completion": [answer]})
    return rows


class Search:
    """A coordinate search: from START, one thing is varied at a time and the best is kept.

    Trials are ranked by real tokens per second: the prompts are the same for all, so this is the ranking by
    labels per second, without the luck of which lengths the few timed steps happened to see.

    Args:
        measure: runs one trial of some settings with some adapter and returns its result, or raises RuntimeError.
        budget: seconds.
        compiled: whether to try torch_compile, too.
        say: prints one line.
    """

    def __init__(
        self,
        measure: Callable[[Settings, str, float], dict[str, Any]],
        budget: float,
        compiled: bool,
        say: Callable[[str], None],
    ) -> None:
        self.measure, self.say = measure, say
        self.budget = budget
        self.changes = [*_CHANGES, ("torch_compile", [{"torch_compile": True}])] if compiled else _CHANGES
        self.trials: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.start = time.monotonic()

    def run(self, adapters: list[str]) -> dict[str, Any]:
        """Search with the first adapter, then try its best and the two runners-up with the others.

        Returns:
            `best` settings by adapter, `best_shipped` (the same without the patched head), all `trials`, what was
            `skipped` for want of time, and the constants.
        """
        best = {adapters[0]: self._coordinates(adapters[0], self.budget * (0.8 if adapters[1:] else 1.0))}
        done = sorted((trial for trial in self.trials if "error" not in trial), key=_speed, reverse=True)
        for adapter in adapters[1:]:
            for trial in done[:3]:
                self._try(trial["settings"], adapter, "the first adapter's best", self.budget)
            best[adapter] = self._best(adapter) or best[adapters[0]]
        unpatched = [trial for trial in done if trial["settings"]["head"] != "labelled"]
        head = unpatched[0]["settings"]["head"] if unpatched else "shipped"
        return {
            "best": best,
            "best_shipped": {
                name: settings | ({"head": head} if settings["head"] == "labelled" else {})
                for name, settings in best.items()
            },
            "heads": HEADS,
            "trials": self.trials,
            "skipped": self.skipped,
            "not_searched": NOT_SEARCHED,
            "budget_s": self.budget,
            "took_s": round(time.monotonic() - self.start, 1),
        }

    def _coordinates(self, adapter: str, deadline: float) -> Settings:
        if not self._try(START, adapter, "start", deadline):
            raise RuntimeError(f"TRL did not train with the settings of the start: {self.trials[-1]['error']}")
        for name, changes in self.changes:
            best = self._best(adapter) or START
            if name == "batch size":
                self._climb(best, adapter, deadline)
            for change in changes:
                self._try({**best, **change}, adapter, name, deadline)
        self._try(DEFAULTS, adapter, "SFTConfig's own defaults, for the record", deadline)
        return self._best(adapter) or START

    def _climb(self, best: Settings, adapter: str, deadline: float) -> None:
        """Double the batch size while that helps; if it never did, halve it while that helps."""
        for direction in (1, -1):
            place, moved = _SIZES.index(best["per_device_train_batch_size"]), False
            while 0 <= place + direction < len(_SIZES):
                place += direction
                settings = {**best, "per_device_train_batch_size": _SIZES[place]}
                if not self._try(settings, adapter, "batch size", deadline) or self._best(adapter) != settings:
                    break
                moved = True
            if moved:
                return

    def _best(self, adapter: str) -> Settings | None:
        done = [trial for trial in self.trials if trial["adapter"] == adapter and "error" not in trial]
        return dict(max(done, key=_speed)["settings"]) if done else None

    def _try(self, settings: Settings, adapter: str, change: str, deadline: float) -> bool:
        """Measure one trial unless it was measured or the time is up; whether there is a speed for it now."""
        for trial in self.trials:
            if trial["settings"] == settings and trial["adapter"] == adapter:
                return "error" not in trial
        text = ", ".join(f"{key}={value}" for key, value in settings.items() if value != START[key]) or "START"
        left = deadline - (time.monotonic() - self.start)
        if left <= 0 and self.trials:
            self.skipped.append(f"{adapter}: {text}")
            return False
        trial = {"adapter": adapter, "change": change, "settings": dict(settings)}
        try:
            trial |= self.measure(settings, adapter, max(180.0, left + 60.0))
            outcome = f"{_speed(trial):,.0f} tokens/s, {trial['labels_per_s']:.2f} labels/s"
        except RuntimeError as error:
            trial["error"] = str(error)
            outcome = f"failed: {error}"
        self.trials.append(trial)
        self.say(f"search {len(self.trials)} [{adapter}] {text}: {outcome}")
        return "error" not in trial


def _speed(trial: dict[str, Any]) -> float:
    return float(trial["tokens_per_s"])
