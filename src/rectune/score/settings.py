"""What is saved beside an adapter so that it is asked the same question for ever: `rectune.json`, rates, baselines."""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rectune.baselines.blended import KINDS
from rectune.baselines.item_rates import rate_table, uses_rates
from rectune.baselines.served import Served
from rectune.config import Config
from rectune.data.columns import ITEM_ID
from rectune.data.portions import Events
from rectune.errors import ModelError
from rectune.files import atomic_path, hash_text, write_json
from rectune.measure.classes import log_softmax
from rectune.prompt.cache import PROMPT_KEYS
from rectune.prompt.verbalizer import Verbalizer
from rectune.version import __version__
from rectune.wording import texts_for

FILE_NAME = "rectune.json"
RATES = "item_rates.parquet"
"""Like-rates of the training events, for candidates that are no event of the dataset."""
BASELINE_FILES = {name: f"{name}.safetensors" for name in KINDS}
"""The baselines that the model starts from, or that join its answer."""
MODEL, OFFSET = "model", "offset"
"""In a blend beside the baselines' names."""
LABEL_WORDS, CLASSIFIER = "label_words", "classifier"
_CONTENT = ("rates", "fitted")
"""Fields that are files of their own."""
_OWN_HASH = "sha256"
"""Key of `rectune.json` with the hash of all others; whoever changes the file by hand removes it."""

Floats = npt.NDArray[np.float64]


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {"rectune": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "bitsandbytes", "polars", "lightgbm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _hash_of(values: dict[str, Any]) -> str:
    """SHA-256 of the settings as JSON, whatever their order and spacing."""
    return hash_text(json.dumps(json.loads(json.dumps(values)), sort_keys=True))


@dataclass(frozen=True)
class AdapterSettings:
    """Everything besides the weights that a tuned model's answers depend on.

    Attributes:
        base_model, base_revision: what the adapter was trained on.
        prompt: the configuration's prompt keys, with the texts filled in.
        verbalizer: label words, their token ids, the end token.
        prior: how item rates are used, None where they are not: `kind` (`item_rate` adds them to the log-odds, `none`
            only writes them as text), `from` and `strength` as in the configuration, `file` and its `sha256`.
        baselines: name → `file` and `sha256` of each baseline that the model starts from or that joins its answer.
        temperature, offset: log-odds are divided by the one, and the other is added, so that scores are probabilities.
        blend: where baselines join the answer, the weight of each one's log-odds by name, that of the model's own as
            `model`, and the `offset` that is added, in place of temperature and offset; else empty.
        loss_shift: what class weights in the loss, or oversampling, added to the model's log-odds, log(positive /
            negative); taken off where no offset is fitted.
        class_shift: of more than two classes, what oversampling added to each one's log-probability; empty for two.
        head: what the log-odds are read from: `label_words`, two rows of the base model's output head, or `classifier`,
            a head of its own in the adapter's file.
        threshold: an answer counts as the positive label when its score is at least this; rankings do not look at it.
        data_hash: content hash of the dataset trained on.
        versions: of the software that trained it.
        rates: content of the file of item rates: item_id, rate, count, the null item being one that nobody has rated.
        fitted: content of the files of the baselines, by name.
    """

    base_model: str
    base_revision: str | None
    prompt: dict[str, Any]
    verbalizer: dict[str, Any]
    data_hash: str
    quantization: str | None = None
    dtype: str = "float32"
    prior: dict[str, Any] | None = None
    baselines: dict[str, dict[str, str]] = field(default_factory=dict)
    temperature: float = 1.0
    offset: float = 0.0
    blend: dict[str, float] = field(default_factory=dict)
    loss_shift: float = 0.0
    threshold: float = 0.5
    class_shift: list[float] = field(default_factory=list)
    head: str = LABEL_WORDS
    versions: dict[str, str] = field(default_factory=versions)
    rates: bytes | None = field(default=None, repr=False)
    fitted: dict[str, bytes] = field(default_factory=dict, repr=False)

    def save(self, folder: Path) -> None:
        """Write `rectune.json` into a folder, and before it the item rates and the baselines where they are used."""
        files = {BASELINE_FILES[name]: content for name, content in self.fitted.items()}
        for name, content in {**files, **({} if self.rates is None else {RATES: self.rates})}.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(content)
        values = {key: value for key, value in asdict(self).items() if key not in _CONTENT}
        write_json(folder / FILE_NAME, values | {_OWN_HASH: _hash_of(values)})

    @property
    def correction(self) -> str:
        """What `calibrated` does, as text."""
        return json.dumps([self.temperature, self.offset, self.blend, self.baselines], sort_keys=True)

    @property
    def correction_text(self) -> str:
        """What `calibrated` does, in words."""
        if self.loss_shift and (self.temperature, self.offset, self.blend) == (1.0, -self.loss_shift, {}):
            return f"log-odds + {self.offset:.4g}, what class weights or oversampling had added"
        if not self.blend:
            return f"log-odds / {self.temperature:.4g} + {self.offset:.4g}, fitted on validation"
        parts = " + ".join(f"{weight:.4g} of {name}" for name, weight in self.blend.items() if name != OFFSET)
        return f"log-odds: {parts} + {self.blend[OFFSET]:.4g}, fitted on validation"

    @property
    def knows_items(self) -> bool:
        """Whether something is known of an item besides its text, so that its id must be given."""
        return self.rates is not None or bool(self.baselines)

    def with_baselines(self, served: Mapping[str, Served]) -> AdapterSettings:
        """A copy that holds these baselines too."""
        fitted = {**self.fitted, **{name: each.to_bytes() for name, each in served.items()}}
        told = {
            name: {"file": BASELINE_FILES[name], "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in fitted.items()
        }
        return replace(self, baselines=told, fitted=fitted)

    def with_loss_shift(self, shift: float) -> AdapterSettings:
        """A copy for a model whose loss had class weights, their effect on the log-odds taken off."""
        return replace(self, loss_shift=shift, offset=-shift) if shift else self

    def calibrated(self, log_odds: Floats, joined: Mapping[str, Floats] | None = None) -> Floats:
        """Log-odds whose sigmoid is the share of likes among items scored so, as fitted on validation.

        Args:
            log_odds: [n]; the model's own, prior added.
            joined: log-odds of every baseline of `joining`, each [n].
        """
        if not self.blend:
            return self.alone(log_odds)
        found: Floats = self.blend[MODEL] * log_odds + self.blend[OFFSET]
        for name in self._joining:
            found = found + self.blend[name] * (joined or {})[name]
        return found

    def class_log_probabilities(self, log_probabilities: Floats) -> Floats:
        """Of more than two classes: log-probabilities [n, classes] less what oversampling added to them."""
        return log_softmax(log_probabilities - np.array(self.class_shift))

    def alone(self, log_odds: Floats) -> Floats:
        """What `calibrated` would be, if no baseline joined the answer."""
        found: Floats = log_odds / self.temperature + self.offset
        return found

    @property
    def joining(self) -> dict[str, Served]:
        """The baselines that join the answer, by name.

        Raises:
            ModelError: one is of another version.
        """
        return {name: self.served[name] for name in self._joining}

    @property
    def _joining(self) -> list[str]:
        return [name for name in self.blend if name not in (MODEL, OFFSET)]

    @cached_property
    def served(self) -> dict[str, Served]:
        """The baselines that the model starts from or that join its answer, by name.

        Raises:
            ModelError: one is of another version.
        """
        found: dict[str, Served] = {}
        for name, content in self.fitted.items():
            try:
                found[name] = KINDS[name].from_bytes(content)
            except ValueError as error:
                advice = "`rectune calibrate RUN` fits it again; a run that starts from it must be trained again"
                raise ModelError(f"{BASELINE_FILES[name]}: {error}; {advice}") from error
        return found

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
        if json.loads(json.dumps(asdict(verbalizer))) != json.loads(json.dumps(self.verbalizer)):
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


def _head_of(prompt_format: Any) -> str:
    """What a configuration's answers are read from."""
    return CLASSIFIER if prompt_format == "classifier" else LABEL_WORDS


def _rates(config: Config, events: Events) -> tuple[dict[str, Any], bytes]:
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
    events: Events | None = None,
    served: Mapping[str, Served] | None = None,
) -> AdapterSettings:
    """The settings of a training run; item rates are counted on its dataset's events, `served` are its baselines."""
    prior, rates = _rates(config, events) if events is not None and uses_rates(config) else (None, None)
    settings = AdapterSettings(
        base_model=config.model_name_or_path if source.startswith("/") else source,
        base_revision=revision,
        prompt=prompt_of(config),
        verbalizer=asdict(verbalizer),
        data_hash=data_hash,
        quantization=quantization_of(config),
        dtype=dtype,
        prior=prior,
        rates=rates,
        head=_head_of(config.prompt_format),
    )
    return settings.with_baselines(served or {})


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
        if values.pop(_OWN_HASH, None) not in (None, _hash_of(values)):
            raise ValueError(f"its content is not what its {_OWN_HASH} says")
        if values.get("stack"):
            raise ModelError(
                f"{file}: its stack was saved by an earlier version, which this one cannot read; train again"
            )
        found = AdapterSettings(**{key: value for key, value in values.items() if key in known})
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no {FILE_NAME}; give the output_dir of a finished rectune training run") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{file}: damaged ({error}); copy it from a checkpoint of the same run") from error
    prior, baselines, blend = found.prior, found.baselines, found.blend
    known_prior = prior is None or (
        isinstance(prior, dict)
        and prior.get("kind") in ("none", "item_rate", "stack")
        and prior.get("kind") == found.prompt.get("prior")
        and prior.get("file") == RATES
        and isinstance(prior.get("sha256"), str)
    )
    known_baselines = isinstance(baselines, dict) and all(
        isinstance(told, dict) and told.get("file") == BASELINE_FILES.get(name) and isinstance(told.get("sha256"), str)
        for name, told in baselines.items()
    )
    if known_baselines and found.prompt.get("prior") == "stack":
        known_baselines = "stack" in baselines
    known_blend = blend == {} or (
        known_baselines
        and isinstance(blend, dict)
        and all(_number(weight) and (weight >= 0 or name == OFFSET) for name, weight in blend.items())
        and {MODEL, OFFSET} < set(blend) <= {MODEL, OFFSET, *baselines}
    )
    for key, applies in (
        ("temperature", _number(found.temperature) and found.temperature > 0), ("offset", _number(found.offset)),
        ("loss_shift", _number(found.loss_shift)),
        ("class_shift", isinstance(found.class_shift, list) and all(map(_number, found.class_shift))),
        ("head", found.head == _head_of(found.prompt.get("prompt_format"))),
        ("prior", known_prior), ("baselines", known_baselines), ("blend", known_blend),
    ):  # fmt: skip
        if not applies:
            raise ModelError(
                f"{file}: {key} is {getattr(found, key)!r}, and this version cannot apply it; update rectune"
            )
    return replace(
        found,
        rates=None if prior is None else _load_rates(folder, prior),
        fitted={name: _content(folder, told["file"], told["sha256"]) for name, told in baselines.items()},
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
