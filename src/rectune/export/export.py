"""The stage from a run folder to an export: refused before work starts, or checked before it bears its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rectune.config_classify import only_two_classes
from rectune.errors import ConfigError
from rectune.export.card import measured, write_card
from rectune.export.forms import ask_trained, export_adapter, export_classifier, export_merged, released
from rectune.export.gguf import Q8_0
from rectune.export.hub import check_hub, push
from rectune.export.pairs import pairs_of
from rectune.export.parity import Parity
from rectune.export.prompt_template import template_of
from rectune.export.quantised import check_gguf, check_packages, export_4_bits, export_gguf
from rectune.export.scoring_file import FILE_NAME, write_scoring
from rectune.export.targets import ADAPTER, CLASSIFIER, GGUF, MERGED, MERGED_4BIT, TARGETS, check_target, writes_rates
from rectune.files import atomic_folder, remove_leftovers
from rectune.score.open_run import open_run, run_config
from rectune.score.settings import RATES, load_settings

Say = Callable[[str], None]

_MAKE: dict[str, Callable[..., dict[str, Parity]]] = {
    ADAPTER: export_adapter, MERGED: export_merged, CLASSIFIER: export_classifier,
}  # fmt: skip
_QUANTISE: dict[str, Callable[..., dict[str, Parity]]] = {MERGED_4BIT: export_4_bits, GGUF: export_gguf}


def _check_output(output: Path) -> None:
    """Refuse to put an export where something else is.

    Raises:
        ConfigError: the folder holds other files.
    """
    if output.exists() and not (output.is_dir() and ((output / FILE_NAME).is_file() or not any(output.iterdir()))):
        raise ConfigError(f"--output: {output} is there and is no export of rectune; choose another folder")


def export(
    folder: Path,
    overrides: list[str],
    to: str,
    output: Path | None,
    say: Say,
    kinds: Sequence[str] = (Q8_0,),
    hub: str | None = None,
    accept_loss: bool = False,
) -> Path:
    """Export a run, check it, and only then give it its name.

    Args:
        folder: a run folder, or one of its checkpoints.
        overrides: `key=value` strings, for keys that do not change the prompt.
        to: a name of `TARGETS`.
        output: the folder to write; None is RUN/export/TARGET.
        say: prints one line.
        kinds: of a GGUF, any of f16, q8_0 and q4_k_m.
        hub: OWNER/NAME of a repository to upload it to; None uploads nothing.
        accept_loss: go on where quantisation costs more of the order than `parity.LEAST_RANK` allows.

    Returns:
        The folder written: the export, `scoring.json` and a model card.

    Raises:
        ConfigError: the form cannot say what the run's answers are made of, or the output holds something else.
        ResourceError: a package that the form needs is not installed, or the hub cannot be reached.
        DataError: the run's report or its dataset is damaged.
        ModelError: a part of the run is missing or damaged, or the export does not answer as the run does; nothing is
            left behind then.
    """
    target = TARGETS[to]
    output = output or folder / "export" / to
    settings = load_settings(folder)
    given = run_config(folder, overrides)
    only_two_classes(given, "export")
    check_target(target, settings.config(given), settings)
    _check_output(output)
    if hub is not None:
        check_hub(hub)
    check_packages(to, kinds)
    run = open_run(folder, overrides, say)
    handed = [run]
    if to == GGUF:
        check_gguf(run)
    measured(run)  # a damaged report must not end an hour of work
    template = template_of(run.prompts)
    pairs = pairs_of(run, template, say)
    say(
        f"pairs: {len(pairs.texts)} {pairs.origin}, {pairs.tied} of them about events that share their moment with "
        "others"
    )
    marked = int(pairs.marked.sum())
    if marked:
        say(
            f"pairs: {marked} hold a special token in a title, which a client's tokenizer takes for the real one and "
            "rectune does not; they are left out of the comparison"
        )
    trained = ask_trained(run, run.model, pairs)
    run = released(run)
    for name in remove_leftovers(output.parent):
        say(f"removed: what a killed process had left of {name}")
    with atomic_folder(output) as temporary:
        make = _MAKE.get(to) or partial(_QUANTISE[to], accept_loss=accept_loss)
        make = partial(make, kinds=kinds) if to == GGUF else make
        parity = make(handed, temporary, pairs, trained, say)
        if writes_rates(run.config) and settings.rates is not None:
            (temporary / RATES).write_bytes(settings.rates)
        scoring = write_scoring(temporary, run, template, target, parity)
        write_card(temporary, run, target, scoring)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    say(f"written: {output} ({size / 2**20:,.1f} MiB)")
    if hub is not None:
        say(f"pushed: {push(output, hub)}, private")
    return output
