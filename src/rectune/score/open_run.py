"""Open a run folder: the tuned model with everything it was trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectune.config import Config, load_config, parse_override
from rectune.errors import ModelError
from rectune.files import hash_file, hash_text
from rectune.model.classifier import for_answers
from rectune.model.load import Loaded, load_model
from rectune.model.lora import ADAPTER_FILE, load_adapter
from rectune.prompt.layouts import Prompts, prompts_for
from rectune.prompt.pieces import Pieces
from rectune.score.settings import MODEL, OFFSET, AdapterSettings, load_settings, prompt_of, quantization_of


@dataclass(frozen=True)
class OpenRun:
    """A tuned model, ready to score.

    Attributes:
        folder: the run (or checkpoint) folder that the adapter came from.
        config: the run's configuration with the saved prompt keys.
        settings: what was saved beside the adapter.
        model: base model and adapter; `model.disable_adapter()` gives the untuned one.
        loaded: the base model's tokenizer, device and precision.
        prompts: the prompt builder of its layout.
    """

    folder: Path
    config: Config
    settings: AdapterSettings
    model: Any
    loaded: Loaded
    prompts: Prompts

    @property
    def many(self) -> bool:
        """Whether it tells more than two classes apart."""
        return len(self.config.classes) > 2

    @property
    def adapter_hash(self) -> str:
        """SHA-256 of the adapter's weights."""
        return hash_file(self.folder / ADAPTER_FILE)

    def scoring_key(self, data_hash: str, *more: str) -> str:
        """A name for uncalibrated scores of this run, 16 hexadecimal digits: whatever they depend on shows in it.

        That is the whole configuration, since base model, quantisation, kernel, batch and prompt all move the scores.

        Args:
            data_hash: content hash of the dataset.
            more: what else the caller's scores depend on.
        """
        return hash_text(
            self.adapter_hash, data_hash, str(self.settings.prior), self.config.to_yaml(),
            str(self.loaded.dtype), self.loaded.attention, *more,
        )[:16]  # fmt: skip


def run_config(folder: Path, overrides: list[str]) -> Config:
    """The configuration of a run folder, or of the run that a checkpoint lies in, with overrides.

    Raises:
        ModelError: the folder is no run.
    """
    for place in (folder, folder.parent):
        if (place / "config.yaml").is_file():
            return load_config(place, overrides)
    raise ModelError(f"{folder}: no config.yaml here, so this is no run folder; give the output_dir of a training run")


def _check_overrides(given: Config, overrides: list[str], settings: AdapterSettings) -> None:
    asked = prompt_of(given)
    for key, _ in map(parse_override, overrides):
        if key in settings.prompt and asked[key] != settings.prompt[key]:
            raise ModelError(
                f"{key}: got {asked[key]!r}, but the adapter was trained with {settings.prompt[key]!r}, and a tuned "
                "model is only asked as it was trained; leave this key out, or train again with it"
            )
        joining = [name for name in settings.blend if name not in (MODEL, OFFSET)]
        if key == "blend" and given.blend != joining:
            raise ModelError(
                f"blend: got {given.blend!r}, but the weights saved with this run are for {joining!r}; "
                f"`rectune calibrate RUN blend=...` fits others"
            )
        now = quantization_of(given)
        if key in ("use_qlora", "quantization_bit") and now != settings.quantization:
            raise ModelError(
                f"{key}: the base model would be loaded {now or 'unquantised'}, but the adapter was trained on it "
                f"{settings.quantization or 'unquantised'}; leave this key out, or train again with it"
            )


def _at_revision(config: Config, settings: AdapterSettings) -> Config:
    """The configuration with the base model's commit that was trained on, where it names none itself."""
    same = config.model_name_or_path == settings.base_model
    if config.model_revision is not None or settings.base_revision is None or not same:
        return config
    return config.with_overrides(model_revision=settings.base_revision)


def run_settings(folder: Path, overrides: list[str]) -> tuple[Config, AdapterSettings]:
    """A run's configuration with the saved prompt keys, and what was saved beside its adapter; no model is loaded.

    Raises:
        ModelError: see `open_run`.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such run folder; train first with `rectune train CONFIG`")
    given = run_config(folder, overrides)
    settings = load_settings(folder)
    _check_overrides(given, overrides, settings)
    return _at_revision(settings.config(given), settings), settings


def open_run(folder: Path, overrides: list[str], say: Callable[[str], None]) -> OpenRun:
    """Load a run's base model and adapter, and check that they are asked as they were trained.

    Args:
        folder: a run folder, or one of its checkpoints.
        overrides: `key=value` strings, for keys that do not change the prompt.
        say: prints one line.

    Raises:
        ModelError: a part is missing, damaged or does not fit; a prompt key or the quantisation was overridden with
            another value.
    """
    config, settings = run_settings(folder, overrides)
    loaded = load_model(config, say)
    dtype = str(loaded.dtype).removeprefix("torch.")
    if dtype != settings.dtype:
        say(f"precision: trained in {settings.dtype}, scored in {dtype}: scores move a little")
    prompts = prompts_for(config, Pieces(loaded.tokenizer))
    settings.check_verbalizer(prompts.verbalizer)
    loaded = for_answers(config, loaded, prompts.verbalizer, say)
    model = load_adapter(loaded.model, folder)
    return OpenRun(folder, config, settings, model, loaded, prompts)
