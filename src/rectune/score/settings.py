"""What is saved beside an adapter so that it is asked the same question for ever: `rectune.json`."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rectune import __version__
from rectune.config import Config
from rectune.errors import ModelError
from rectune.files import write_json
from rectune.prompt.encode import PROMPT_KEYS
from rectune.prompt.verbalizer import Verbalizer
from rectune.wording import texts_for

FILE_NAME = "rectune.json"


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
        prior: what is added to the log-odds before the answer; None adds nothing.
        temperature: the log-odds are divided by it.
        threshold: an item is recommended when its score is at least this.
        data_hash: content hash of the dataset trained on.
        versions: of the software that trained it.
    """

    base_model: str
    base_revision: str | None
    prompt: dict[str, Any]
    verbalizer: dict[str, Any]
    data_hash: str
    quantization: str | None = None
    dtype: str = "float32"
    prior: None = None
    temperature: float = 1.0
    threshold: float = 0.5
    versions: dict[str, str] = field(default_factory=versions)

    def save(self, folder: Path) -> None:
        """Write `rectune.json` into a folder."""
        write_json(folder / FILE_NAME, asdict(self))

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


def settings_of(
    config: Config, verbalizer: Verbalizer, source: str, revision: str | None, dtype: str, data_hash: str
) -> AdapterSettings:
    """The settings of a training run."""
    return AdapterSettings(
        base_model=config.model_name_or_path if source.startswith("/") else source,
        base_revision=revision,
        prompt=prompt_of(config),
        verbalizer=asdict(verbalizer),
        data_hash=data_hash,
        quantization=quantization_of(config),
        dtype=dtype,
    )


def load_settings(folder: Path) -> AdapterSettings:
    """Read `rectune.json`.

    Raises:
        ModelError: it is missing or damaged, or holds a correction of the scores that this version cannot apply.
    """
    file = folder / FILE_NAME
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        known = {item.name for item in fields(AdapterSettings)}
        if not all(isinstance(part, dict) for part in (values, values["prompt"], values["verbalizer"])):
            raise ValueError("prompt and verbalizer are not mappings")
        found = AdapterSettings(**{key: value for key, value in values.items() if key in known})
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no {FILE_NAME}; give the output_dir of a finished rectune training run") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{file}: damaged ({error}); copy it from a checkpoint of the same run") from error
    for key, plain in (("temperature", 1.0), ("prior", None)):
        if (value := getattr(found, key)) != plain:
            raise ModelError(f"{file}: {key} is {value!r}, and this version cannot apply it; update rectune")
    return found
