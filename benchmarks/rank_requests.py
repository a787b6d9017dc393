"""What rank_speed.py asks: requests of real users, their plain prompts, and the models that are asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from qwen3_shapes import qwen3_config

from rectune.config import Config, parse_config
from rectune.data.columns import ITEM_ID, LABEL, RATING, USER_ID
from rectune.data.folder import load_catalog, load_events
from rectune.model import blocks
from rectune.model.attention import choose_attention
from rectune.model.device import choose_device, choose_dtype
from rectune.model.load import Loaded, load_model, resolve_source
from rectune.prompt.events import Event
from rectune.prompt.layouts import Prompts, prompts_for
from rectune.prompt.pieces import Pieces
from rectune.score.candidates import Candidate, Request
from rectune.score.open_run import OpenRun, open_run
from rectune.score.settings import settings_of
from rectune.wording import item_texts

Job = dict[str, Any]

ROOM = 8192
"""cutoff_len for all: no history is shortened."""


def silent(_line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Asked:
    """A request, and the plain prompts of its candidates.

    Attributes:
        prompts: token ids of each.
        shared: how many tokens all of them begin with, at least one of each left out.
    """

    request: Request
    prompts: list[list[int]]
    shared: int

    @property
    def trunk_tokens(self) -> int:
        """Tokens when the trunk is computed once."""
        return self.shared + self.prompt_tokens - self.shared * len(self.prompts)

    @property
    def prompt_tokens(self) -> int:
        """Tokens when every prompt is computed whole."""
        return sum(map(len, self.prompts))

    def head(self, count: int) -> Asked:
        """The first candidates only."""
        return Asked(
            replace(self.request, candidates=self.request.candidates[:count]), self.prompts[:count], self.shared
        )


def shared_tokens(prompts: list[list[int]]) -> int:
    """Length of the longest beginning that all prompts share, short of any whole prompt.

    >>> shared_tokens([[5, 6, 7], [5, 6, 8, 9]]), shared_tokens([[5, 6], [5, 6, 7]])
    (2, 1)
    """
    least, most = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    return next((at for at in range(limit) if least[at] != most[at]), limit)


def draw_requests(job: Job, prompts: Prompts, history: int, users: int, candidates: int) -> list[Asked]:
    """Requests of real users: the last `history` events of each, and items that the user has not rated.

    Users are the same for every length of history: those with the most candidates to draw from, in a seeded order.
    """
    folder = Path(job["dataset_dir"])
    events, catalog = load_events(folder), load_catalog(folder)
    texts = item_texts(catalog, job["config"]["item_text"])
    counts = events.group_by(USER_ID).agg(pl.len(), items=pl.col(ITEM_ID).n_unique())
    fit = counts.filter((pl.col("len") >= job["longest"]) & (catalog.height - pl.col("items") >= job["most"]))
    draw = np.random.default_rng(job["seed"])
    chosen = draw.permutation(fit[USER_ID].sort().to_numpy())[:users].tolist()
    if len(chosen) < users:
        raise RuntimeError(
            f"the dataset has {len(chosen)} users with {job['longest']} events and {job['most']} items that they have "
            f"not rated, and {users} are needed; ask for fewer with --histories and --loads"
        )
    found = []
    for user in chosen:
        mine = events.filter(pl.col(USER_ID) == user)
        shown = [
            Event(texts[item], rating, label)
            for item, rating, label in mine[-history:][ITEM_ID, RATING, LABEL].iter_rows()
        ]
        fresh = draw.permutation(catalog.filter(~pl.col(ITEM_ID).is_in(mine[ITEM_ID].implode()))[ITEM_ID].to_numpy())
        asked = [Candidate(texts[item]) for item in fresh[:candidates]]
        plain = [prompts.build(shown, candidate.text).tokens for candidate in asked]
        found.append(Asked(Request(shown, asked), plain, shared_tokens(plain)))
    return found


def shape_of(asked: list[Asked]) -> dict[str, float]:
    """P, c and what token arithmetic allows: the tokens of whole prompts by those of trunks with branches."""
    pairs = sum(len(each.prompts) for each in asked)
    trunks = sum(each.shared for each in asked)
    once = sum(each.trunk_tokens for each in asked)
    return {
        "P": trunks / len(asked),
        "c": (once - trunks) / pairs,
        "bound": sum(each.prompt_tokens for each in asked) / once,
    }


def tokenizer_of(job: Job) -> Any:
    """The tokenizer that was asked for, or the model's own."""
    from transformers import AutoTokenizer

    source = job["tokenizer"] or resolve_source(job["config"]["model_name_or_path"], silent)[0]
    return AutoTokenizer.from_pretrained(source)


def _random_model(job: Job, dtype: torch.dtype, attention: str) -> Any:
    """A Qwen3 of a published shape with random weights, the same in every process."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(job["seed"])
    model = AutoModelForCausalLM.from_config(
        qwen3_config(job["shape"]), dtype=torch.float32, attn_implementation=attention
    )
    return model.to(choose_device()[0], dtype).eval().requires_grad_(False)


def plain_model(job: Job, dtype: torch.dtype, attention: str) -> Any:
    """The model as a user of transformers has it; a run's adapter is merged into the weights."""
    from transformers import AutoModelForCausalLM

    if job["shape"] is not None:
        return _random_model(job, dtype, attention)
    config = parse_config(job["config"], "benchmark")
    source, extra = resolve_source(config.model_name_or_path, silent)
    device = choose_device()[0]
    kind = torch.float32 if job["run"] else dtype  # an adapter is merged in float32
    model = AutoModelForCausalLM.from_pretrained(source, dtype=kind, attn_implementation=attention, **extra)
    if job["run"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, job["run"]).merge_and_unload()
    return model.to(device, dtype).eval().requires_grad_(False)


def own_run(job: Job) -> OpenRun:
    """The model as rectune opens it: a run, or the untuned base; nothing is shortened and no prior is added."""
    config = parse_config(job["config"], "benchmark")
    if job["run"]:
        opened = open_run(Path(job["run"]), [], silent)
        return replace(opened, config=config, prompts=prompts_for(config, opened.prompts.pieces))
    if job["shape"] is None:
        loaded = load_model(config, silent)
    else:
        device = choose_device()[0]
        dtype = choose_dtype(config, device)[0]
        attention = choose_attention(config, device, dtype)[0]
        blocks.register()
        model = _random_model(job, dtype, attention)
        loaded = Loaded(model, tokenizer_of(job), "random", None, device, dtype, attention)
    prompts = prompts_for(config, Pieces(loaded.tokenizer))
    dtype_name = str(loaded.dtype).removeprefix("torch.")
    settings = settings_of(config, prompts.verbalizer, loaded.source, None, dtype_name, "benchmark")
    return OpenRun(Path(), config, settings, loaded.model, loaded, prompts)


def bench_config(job: Job) -> Config:
    """The configuration of a job's prompts."""
    return parse_config(job["config"], "benchmark")
