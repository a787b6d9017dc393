"""What is saved beside an adapter so that it is asked the same question for ever: `rectune.json`, rates, prior."""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune import __version__
from rectune.baselines.item_rates import rate_table, uses_rates
from rectune.baselines.stack import Stack
from rectune.config import Config
from rectune.data.columns import ITEM_ID
from rectune.errors import ModelError
from rectune.files import atomic_path, write_json
from rectune.prompt.encode import PROMPT_KEYS
from rectune.prompt.verbalizer import Verbalizer
from rectune.wording import texts_for

FILE_NAME = "rectune.json"
RATES = "item_rates.parquet"
"""Like-rates of the training events, for candidates that are no event of the dataset."""
STACK = "stack.safetensors"
"""The stacked baseline, where the model starts from it."""
_CONTENT = ("rates", "stacked")
"""Fields that are files of their own."""


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {"rectune": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "bitsandbytes", "polars", "lightgbm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class AdapterSettings:
    """Everything besides the weights that a tuned model's answers depend on.

    Attributes:
        base_model, base_revision: what the adapter was trained on.
        prompt: the configuration's prompt keys, with the texts filled in.
        verbalizer: label words, their token ids, the end token.
        prior: how item rates are used, None where they are not: `kind` (`item_rate` adds them to the log-odds, `none`
            only writes them as text), `from` and `strength` as in the configuration, `file` and its `sha256`.
        stack: `file` and `sha256` of the stacked baseline whose log-odds are added, None where it is not.
        temperature, offset: log-odds are divided by the one, and the other is added, so that scores are probabilities.
        threshold: an answer counts as the positive label when its score is at least this; rankings do not look at it.
        data_hash: content hash of the dataset trained on.
        versions: of the software that trained it.
        rates: content of the file of item rates: item_id, rate, count, the null item being one that nobody has rated.
        stacked: content of the file of the stacked baseline.
    """

    base_model: str
    base_revision: str | None
    prompt: dict[str, Any]
    verbalizer: dict[str, Any]
    data_hash: str
    quantization: str | None = None
    dtype: str = "float32"
    prior: dict[str, Any] | None = None
    stack: dict[str, str] | None = None
    temperature: float = 1.0
    offset: float = 0.0
    threshold: float = 0.5
    versions: dict[str, str] = field(default_factory=versions)
    rates: bytes | None = field(default=None, repr=False)
    stacked: bytes | None = field(default=None, repr=False)

    def save(self, folder: Path) -> None:
        """Write `rectune.json` into a folder, and before it the item rates and the stack where they are used."""
        for name, content in ((RATES, self.rates), (STACK, self.stacked)):
            if content is not None:
                with atomic_path(folder / name) as temporary:
                    temporary.write_bytes(content)
        write_json(folder / FILE_NAME, {key: value for key, value in asdict(self).items() if key not in _CONTENT})

    def calibrated(self, log_odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Log-odds whose sigmoid is the share of likes among items scored so, as fitted on validation."""
        found: npt.NDArray[np.float64] = log_odds / self.temperature + self.offset
        return found

    @cached_property
    def stacked_baseline(self) -> Stack:
        """The stacked baseline that the model starts from.

        Raises:
            ModelError: none was saved, or it is of another version.
        """
        if self.stacked is None:
            raise ModelError(f"this adapter starts from the stacked baseline, but no {STACK} was saved; train again")
        try:
            return Stack.from_bytes(self.stacked)
        except ValueError as error:
            raise ModelError(f"{STACK}: {error}; train again, or use the version of rectune that trained it") from error

    @cached_property
    def item_rates(self) -> dict[str | None, tuple[float, int]]:
        """Like-rate and count of every rated item; None stands for all others.

        Raises:
            ModelError: none were saved.
        """
        if self.rates is None:
            raise ModelError(f"this adapter was trained with item rates, but no {RATES} was saved with it; train again")
        return {item: (rate, count) for item, rate, count in pl.read_parquet(io.BytesIO(self.rates)).iter_rows()}

    def config(self, config: Config) -> Config:
        """A configuration with the saved prompt keys in place of its own."""
        return config.with_overrides(**self.prompt)

    def check_verbalizer(self, verbalizer: Verbalizer) -> None:
        """Refuse a tokenizer that reads the labels from other tokens than training did.

        Raises:
            ModelError: a label word or token id differs.
        """
        if asdict(verbalizer) != self.verbalizer:
            raise ModelError(
                f"the label tokens differ from those trained on (now {asdict(verbalizer)}, then {self.verbalizer}): "
                "the base model's tokenizer has changed; use the base model and revision of rectune.json"
            )


def prompt_of(config: Config) -> dict[str, Any]:
    """A configuration's prompt keys, with the texts filled in."""
    texts = texts_for(config)
    prompt = {key: getattr(config, key) for key in PROMPT_KEYS}
    return prompt | {"system_prompt": texts.system, **{k: v for k, v in asdict(texts).items() if k != "system"}}


def quantization_of(config: Config) -> str | None:
    """How a configuration stores the base model's weights: `4-bit`, `8-bit` or None."""
    bits = 4 if config.use_qlora else config.quantization_bit
    return None if bits is None else f"{bits}-bit"


def _rates(config: Config, events: pl.DataFrame) -> tuple[dict[str, Any], bytes]:
    """How a configuration uses item rates, and the table of them."""
    stream = io.BytesIO()
    rate_table(events, config.item_rate_strength).write_parquet(stream)
    content = stream.getvalue()
    return {"kind": config.prior, "file": RATES, "sha256": hashlib.sha256(content).hexdigest()}, content


def settings_of(
    config: Config,
    verbalizer: Verbalizer,
    source: str,
    revision: str | None,
    dtype: str,
    data_hash: str,
    events: pl.DataFrame | None = None,
    stack: Stack | None = None,
) -> AdapterSettings:
    """The settings of a training run; item rates are counted on its dataset's events, `stack` is its prior."""
    prior, rates = _rates(config, events) if events is not None and uses_rates(config) else (None, None)
    stacked = None if stack is None else stack.to_bytes()
    return AdapterSettings(
        base_model=config.model_name_or_path if source.startswith("/") else source,
        base_revision=revision,
        prompt=prompt_of(config),
        verbalizer=asdict(verbalizer),
        data_hash=data_hash,
        quantization=quantization_of(config),
        dtype=dtype,
        prior=prior,
        rates=rates,
        stack=None if stacked is None else {"file": STACK, "sha256": hashlib.sha256(stacked).hexdigest()},
        stacked=stacked,
    )


def _content(folder: Path, name: str, sha256: str) -> bytes:
    """A file beside `rectune.json`, which must be the one that was saved with it.

    Raises:
        ModelError: it is missing or damaged.
    """
    file = folder / name
    advice = "copy it from a checkpoint of the same run"
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no {name}, which {FILE_NAME} names; {advice}") from error
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error}); {advice}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ModelError(f"{file}: damaged (its content is not what {FILE_NAME} records); {advice}")
    return content


def _load_rates(folder: Path, prior: dict[str, Any]) -> bytes:
    """The saved item rates, which must be whole.

    Raises:
        ModelError: they are missing or damaged.
    """
    content = _content(folder, RATES, prior["sha256"])
    try:
        table = pl.read_parquet(io.BytesIO(content))
        if table.columns != [ITEM_ID, "rate", "count"] or table[ITEM_ID].null_count() != 1:
            raise ValueError("it holds no item rates")
    except (ValueError, pl.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"{folder / RATES}: damaged ({reason}); copy it from a checkpoint of the same run") from error
    return content


def load_settings(folder: Path) -> AdapterSettings:
    """Read `rectune.json` and the item rates that it names.

    Raises:
        ModelError: one is missing or damaged, or holds a correction of the scores that this version cannot apply.
    """
    file = folder / FILE_NAME
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        known = {item.name for item in fields(AdapterSettings)} - set(_CONTENT)
        if not all(isinstance(part, dict) for part in (values, values["prompt"], values["verbalizer"])):
            raise ValueError("prompt and verbalizer are not mappings")
        found = AdapterSettings(**{key: value for key, value in values.items() if key in known})
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no {FILE_NAME}; give the output_dir of a finished rectune training run") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{file}: damaged ({error}); copy it from a checkpoint of the same run") from error
    prior, stack = found.prior, found.stack
    known_prior = prior is None or (
        isinstance(prior, dict)
        and prior.get("kind") in ("none", "item_rate", "stack")
        and prior.get("kind") == found.prompt.get("prior")
        and prior.get("file") == RATES
        and isinstance(prior.get("sha256"), str)
    )
    known_stack = (found.prompt.get("prior") == "stack") == (stack is not None) and (
        stack is None
        or (isinstance(stack, dict) and stack.get("file") == STACK and isinstance(stack.get("sha256"), str))
    )
    for key, applies in (
        ("temperature", _number(found.temperature) and found.temperature > 0), ("offset", _number(found.offset)),
        ("prior", known_prior), ("stack", known_stack),
    ):  # fmt: skip
        if not applies:
            raise ModelError(
                f"{file}: {key} is {getattr(found, key)!r}, and this version cannot apply it; update rectune"
            )
    return replace(
        found,
        rates=None if prior is None else _load_rates(folder, prior),
        stacked=None if stack is None else _content(folder, STACK, stack["sha256"]),
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
