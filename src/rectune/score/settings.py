"""What is saved beside an adapter so that it is asked the same question for ever: `rectune.json`, item rates."""

from __future__ import annotations

import hashlib
import io
import json
import platform
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import polars as pl

from rectune import __version__
from rectune.baselines.item_rates import rate_table, uses_rates
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


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {"rectune": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "bitsandbytes", "polars"):
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
        temperature: the log-odds are divided by it.
        threshold: an answer counts as the positive label when its score is at least this; rankings do not look at it.
        data_hash: content hash of the dataset trained on.
        versions: of the software that trained it.
        rates: content of the file of item rates: item_id, rate, count, the null item being one that nobody has rated.
    """

    base_model: str
    base_revision: str | None
    prompt: dict[str, Any]
    verbalizer: dict[str, Any]
    data_hash: str
    quantization: str | None = None
    dtype: str = "float32"
    prior: dict[str, Any] | None = None
    temperature: float = 1.0
    threshold: float = 0.5
    versions: dict[str, str] = field(default_factory=versions)
    rates: bytes | None = field(default=None, repr=False)

    def save(self, folder: Path) -> None:
        """Write `rectune.json` into a folder, and the item rates before it where they are used."""
        if self.rates is not None:
            with atomic_path(folder / RATES) as temporary:
                temporary.write_bytes(self.rates)
        write_json(folder / FILE_NAME, {key: value for key, value in asdict(self).items() if key != "rates"})

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
) -> AdapterSettings:
    """The settings of a training run; item rates are counted on its dataset's events."""
    prior, rates = _rates(config, events) if events is not None and uses_rates(config) else (None, None)
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
    )


def _load_rates(folder: Path, prior: dict[str, Any]) -> bytes:
    """The saved item rates, which must be whole.

    Raises:
        ModelError: they are missing or damaged.
    """
    file = folder / RATES
    try:
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != prior["sha256"]:
            raise ValueError(f"its content is not what {FILE_NAME} records")
        table = pl.read_parquet(io.BytesIO(content))
        if table.columns != [ITEM_ID, "rate", "count"] or table[ITEM_ID].null_count() != 1:
            raise ValueError("it holds no item rates")
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder}: no {RATES}, which {FILE_NAME} names; copy it from a checkpoint of the run"
        ) from error
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"{file}: damaged ({reason}); copy it from a checkpoint of the same run") from error
    return content


def load_settings(folder: Path) -> AdapterSettings:
    """Read `rectune.json` and the item rates that it names.

    Raises:
        ModelError: one is missing or damaged, or holds a correction of the scores that this version cannot apply.
    """
    file = folder / FILE_NAME
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        known = {item.name for item in fields(AdapterSettings)} - {"rates"}
        if not all(isinstance(part, dict) for part in (values, values["prompt"], values["verbalizer"])):
            raise ValueError("prompt and verbalizer are not mappings")
        found = AdapterSettings(**{key: value for key, value in values.items() if key in known})
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no {FILE_NAME}; give the output_dir of a finished rectune training run") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{file}: damaged ({error}); copy it from a checkpoint of the same run") from error
    prior = found.prior
    known_prior = prior is None or (
        isinstance(prior, dict)
        and prior.get("kind") in ("none", "item_rate")
        and prior.get("kind") == found.prompt.get("prior")
        and prior.get("file") == RATES
        and isinstance(prior.get("sha256"), str)
    )
    for key, applies in (("temperature", found.temperature == 1.0), ("prior", known_prior)):
        if not applies:
            raise ModelError(
                f"{file}: {key} is {getattr(found, key)!r}, and this version cannot apply it; update rectune"
            )
    return found if prior is None else replace(found, rates=_load_rates(folder, prior))
