"""The command line: parse, call a stage, print. Heavy imports happen inside the commands, so --help is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rectune.cli_export import EXPORT_EXAMPLE, export
from rectune.cli_options import (
    ConfigPath,
    IgnorePlan,
    Mode,
    ModeOption,
    Overrides,
    Protocol,
    RunPath,
    Split,
    SplitOption,
    console,
    refuse_idle,
    say,
)
from rectune.cli_plan import PLAN_EXAMPLE, plan
from rectune.cli_prepare import PREPARE_EXAMPLE, prepare
from rectune.cli_rank import RANK_EXAMPLE, RECOMMEND_EXAMPLE, rank, recommend
from rectune.cli_score import SCORE_EXAMPLE, classifies, score
from rectune.cli_serve import SERVE_EXAMPLE, serve
from rectune.cli_sweep import SWEEP_EXAMPLE, sweep
from rectune.errors import ConfigError, PeerFailed, RectuneError, ResourceError
from rectune.files import disk_problem
from rectune.launched import met, name_of_process, world_size
from rectune.quiet import quiet_libraries
from rectune.terminal import outlive_terminal

if TYPE_CHECKING:
    from rectune.config import Config

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Turn an open language model into a recommender, and say honestly whether it beats what is simpler.\n\n"
    "Each command is COMMAND CONFIG [key=value ...]. CONFIG is a YAML file or the name of a shipped one "
    "(`rectune configs`); commands that need a trained model take its run folder in place of CONFIG.",
    epilog="Start with: rectune run demo_cpu",
)


def _load(path: Path, overrides: list[str] | None) -> Config:
    """A configuration by path, or a shipped one by name."""
    from rectune.config import load_config
    from rectune.shipped import find_config

    return load_config(find_config(path), overrides)


@app.command(epilog="Example: rectune run demo_cpu   ·   rectune run configs/qwen3_movielens_qlora.yaml seed=1")
def run(
    config: Annotated[Path, typer.Argument(help="YAML file, or the name of a shipped configuration.")] = Path(
        "demo_cpu"
    ),
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier run in output_dir.")] = False,
    ignore_plan: IgnorePlan = False,
) -> None:
    """Everything from ratings to a report: prepare, train, evaluate base beside tuned."""
    from rectune.pipeline import run_all

    with outlive_terminal():
        run_all(_load(config, overrides), resume, overwrite, say, console(), ignore_plan)


app.command(epilog=PREPARE_EXAMPLE)(prepare)


@app.command(epilog="Example: rectune inspect demo_cpu --show-examples 1 --percentiles 50,95,100")
def inspect(
    config: ConfigPath,
    overrides: Overrides = None,
    show_examples: Annotated[int, typer.Option(min=0, help="Examples to follow through the six steps.")] = 2,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Measure at most this many prompts.")] = None,
    cutoff_len: Annotated[int | None, typer.Option(help="Try another cutoff_len.")] = None,
    percentiles: Annotated[str, typer.Option(help="Which to report, with commas.")] = "50,90,95,99,100",
    char_only: Annotated[bool, typer.Option("--char-only", help="Count characters; no tokenizer needed.")] = False,
    packing: Annotated[bool, typer.Option("--packing/--no-packing", help="Try packing.")] = True,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the figures as JSON.")] = None,
) -> None:
    """Show what becomes of an event on its way to the model, and how long the prompts are."""
    from rectune.prompt.inspect import inspect as stage

    extra = [f"cutoff_len={cutoff_len}"] if cutoff_len is not None else []
    stage(
        _load(config, [*(overrides or []), *extra]),
        examples=show_examples,
        limit=max_samples,
        percentiles=percentiles,
        characters=char_only,
        packed=packing,
        json_path=json_path,
        say=say,
        console=console(),
    )


app.command(epilog=PLAN_EXAMPLE)(plan)


@app.command(epilog="Example: rectune train demo_cpu learning_rate=2e-4   ·   rectune train demo_cpu --resume")
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint of output_dir.")] = False,
    resume_from_checkpoint: Annotated[
        Path | None, typer.Option("--resume-from-checkpoint", "--resume_from_checkpoint", help="Go on from this one.")
    ] = None,
    extra_epochs: Annotated[int, typer.Option("--extra-epochs", min=0, help="Epochs beyond num_train_epochs.")] = 0,
    clear_cache: Annotated[
        bool,
        typer.Option(
            "--clear-cache",
            help="Tokenise again: remove the tokenised prompts of every run that shares preprocessing_cache_dir.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier run in output_dir.")] = False,
    ignore_plan: IgnorePlan = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="A prompt, two steps, an evaluation, a save and a reload; nothing is kept."),
    ] = False,
) -> None:
    """Fine-tune an adapter; the best one ends at the root of output_dir."""
    from rectune.train.start import Resume
    from rectune.train.train import train as stage

    if dry_run:
        idle = {"--resume": resume, "--resume-from-checkpoint": resume_from_checkpoint, "--overwrite": overwrite}
        refuse_idle({**idle, "--extra-epochs": extra_epochs, "--clear-cache": clear_cache}, "with --dry-run")
        from rectune.train.dry_run import dry_run as rehearse

        rehearse(_load(config, overrides), say, console(), ignore_plan)
        return
    start = Resume(latest=resume, checkpoint=resume_from_checkpoint, extra_epochs=extra_epochs)
    with outlive_terminal():
        stage(
            _load(config, overrides), say, console(), start, clear=clear_cache, overwrite=overwrite,
            ignore_plan=ignore_plan,
        )  # fmt: skip


app.command(epilog=SWEEP_EXAMPLE)(sweep)


app.command(epilog=SCORE_EXAMPLE)(score)


@app.command(
    epilog="Example: rectune evaluate output/demo --split validation   ·   "
    "rectune evaluate output/demo --protocol topk --max-users 200   ·   "
    "rectune evaluate output/demo --beside output/ids"
)
def evaluate(
    run: RunPath,
    overrides: Overrides = None,
    split: SplitOption = Split.TEST,
    mode: ModeOption = Mode.LOGITS,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Measure the untuned model too.")] = True,
    protocol: Annotated[
        Protocol, typer.Option(help="online: every event given all before it. topk: rankings at the split's beginning.")
    ] = Protocol.ONLINE,
    max_users: Annotated[int | None, typer.Option(min=1, help="With topk: at most this many users.")] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Another run, evaluated before, to stand in the report; may be given several times."),
    ] = None,
) -> None:
    """Measure a run on a split, beside its untuned base and a baseline, and write metrics.json and report.html.

    For validation they are metrics_validation.json and report_validation.html. With --protocol topk: candidate sets,
    retrievers and a retriever's best ranked again by the model, into metrics_topk.json.
    """
    if protocol is Protocol.TOPK:
        refuse_idle({"--mode": mode is not Mode.LOGITS, "--beside": beside}, "with --protocol topk")
        classifies(run, overrides or [], "--protocol topk", False)
        from rectune.report.topk import evaluate_topk

        evaluate_topk(run, overrides or [], split.value, max_users, base, say, console())
        return
    refuse_idle({"--max-users": max_users}, "without --protocol topk")
    from rectune.report.evaluate import evaluate as stage

    found = stage(run, overrides or [], split.value, mode.value, base, say, console(), beside or [])
    say(f"report: {found.page}")


@app.command(
    epilog="Example: rectune calibrate output/demo max_eval_samples=null   ·   "
    "rectune calibrate output/demo blend=[stack,network]"
)
def calibrate(run: RunPath, overrides: Overrides = None) -> None:
    """Fit a run's probabilities and threshold on validation again, and the weights of baselines that join it (blend).

    The adapter stays as it is; what is fitted is saved beside it and works in score, rank, recommend and evaluate.
    """
    from rectune.score.recalibrate import recalibrate

    recalibrate(run, overrides or [], say, console())


@app.command(epilog="Example: rectune baselines demo_cpu   ·   rectune baselines demo_cpu --split validation")
def baselines(config: ConfigPath, overrides: Overrides = None, split: SplitOption = Split.TEST) -> None:
    """Fit the simple models on a dataset and measure them: what a tuned model has to beat."""
    from rectune.report.baselines import measure_baselines

    measure_baselines(_load(config, overrides), split.value, say, console())


@app.command(epilog="Example: rectune compare output/demo --output output/demo/comparison")
def compare(
    run: RunPath,
    overrides: Overrides = None,
    split: SplitOption = Split.TEST,
    output: Annotated[Path | None, typer.Option(help="Folder for the files; default RUN/comparison.")] = None,
) -> None:
    """Untuned beside tuned, row by row: improvements, regressions, both wrong."""
    from rectune.report.evaluate import compare as stage

    stage(run, overrides or [], split.value, output, say, console())


app.command(epilog=RANK_EXAMPLE)(rank)
app.command(epilog=RECOMMEND_EXAMPLE)(recommend)
app.command(epilog=EXPORT_EXAMPLE)(export)
app.command(epilog=SERVE_EXAMPLE)(serve)


@app.command(epilog="Example: rectune watch output/demo   ·   rectune watch output/a output/b --once")
def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; several share their plots.")],
    once: Annotated[bool, typer.Option("--once", help="Print and exit; without a terminal it always does.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and exit.")] = False,
) -> None:
    """Look at a run while it trains: curves, panel, diagnosis, speed, time left; Ctrl-C leaves it running."""
    from rectune.watch.watch import watch as stage

    stage(runs, once, as_json, say, console())


@app.command(epilog="Example: rectune doctor   ·   rectune doctor --json")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    network: Annotated[bool, typer.Option("--network/--no-network", help="Try to reach the model hub.")] = True,
) -> None:
    """What this machine can do, and what to do about what is missing."""
    from rectune.doctor import examine, show

    show(examine(network), as_json, say)


@app.command(epilog="Example: rectune configs   ·   rectune configs demo_cpu   ·   rectune configs --keys")
def configs(
    name: Annotated[str | None, typer.Argument(help="Print this shipped configuration.")] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every key with its default and meaning.")] = False,
) -> None:
    """The shipped configurations, and all keys."""
    from rectune import shipped

    if keys:
        say(shipped.describe_keys())
    elif name:
        say(shipped.shipped_text(name))
    else:
        say(shipped.list_configs())
        say("\nFor accelerate launch --config_file FILE -m rectune train CONFIG:")
        say(shipped.list_launchers())


def reported(action: Callable[[], object]) -> None:
    """Do something for a user: a mistake becomes one line and an exit code, never a traceback."""
    quiet_libraries()
    try:
        action()
    except RectuneError as error:
        if isinstance(error, PeerFailed) or (isinstance(error, ConfigError) and name_of_process() and not met()):
            sys.exit(error.exit_code)  # another process of the same run says it
        with suppress(OSError):  # the terminal may be gone
            what = "stopped" if error.exit_code == 130 else "error"
            print(f"{what}: {name_of_process()}{error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if not disk_problem(error):
            raise
        print("error: the disk is full; free some space, then run the same command again", file=sys.stderr)
        sys.exit(ResourceError.exit_code)


def _check_launcher(arguments: list[str]) -> None:
    """Only a training is shared by several processes; other commands would write the same files at the same time.

    Raises:
        ConfigError: a launcher has started several processes of another command.
    """
    if world_size() > 1 and arguments[:1] != ["train"]:
        raise ConfigError(
            f"{' '.join(arguments[:1])}: works in one process, and a launcher has started {world_size()}; of rectune's "
            "commands accelerate and torchrun start `train` alone"
        )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, by default with the arguments of this process."""

    def run_command() -> None:
        _check_launcher(sys.argv[1:] if arguments is None else arguments)
        app(args=arguments, prog_name="rectune")

    reported(run_command)


if __name__ == "__main__":
    main()
