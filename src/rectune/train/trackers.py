"""Where curves go besides CSV and JSONL: TensorBoard, Weights & Biases, MLflow, trackio.

Transformers' own callbacks do the work. What is added here: everything stays on this machine unless the environment
says otherwise, and a resumed run's new entry holds the lines before the resume too, as `log.jsonl` does.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import os
from collections.abc import Callable
from typing import Any

from rectune.config import Config
from rectune.errors import ResourceError

PROJECT = "rectune"

_NEEDS: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
_PACKAGE = {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"}


def check_trackers(config: Config) -> None:
    """See that what `report_to` asks for is installed, before anything is loaded.

    Raises:
        ResourceError: a package is missing; the line says how to install it.
    """
    for name in config.trackers():
        needs = _NEEDS[name]
        if name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
            needs = (*needs, "sqlalchemy", "alembic")  # of its local store
        missing = [_PACKAGE.get(package, package) for package in needs if importlib.util.find_spec(package) is None]
        if missing:
            raise ResourceError(
                f"report_to: {name} needs {' and '.join(missing)}, which is not installed: "
                f"pip install {' '.join(missing)}, or set report_to=tensorboard"
            )


_TOGETHER = {
    "Loss": {
        "training and validation": ["train/loss", "eval/loss"],
        "validation by class": ["eval/loss_positive", "eval/loss_negative"],
    },
    "Quality": {
        "AUC, UAUC and F1": ["eval/auc", "eval/uauc", "eval/f1"],
        "precision and recall": ["eval/precision", "eval/recall"],
        "predicted and true rate of yes": ["eval/predicted_positive_rate", "eval/positive_rate"],
    },
}
"""Curves that TensorBoard's page of custom scalars draws over one another."""


def tensorboard_callback(config: Config, first_step: int | None) -> Any:
    """TensorBoard in the run's `logs/`: curves, related ones together, and the configuration as text.

    Args:
        config: all keys.
        first_step: when resuming, the first step that will be written again; what was there from it on is dropped.
    """
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    class TensorBoard(TensorBoardCallback):
        """Says what this run was asked for, in place of two pages of the Trainer's arguments."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.tb_writer.add_text("config", f"```\n{config.to_yaml()}```", state.global_step)
            self.tb_writer.add_custom_scalars(
                {
                    part: {name: ["Multiline", [f"^{tag}$" for tag in tags]] for name, tags in charts.items()}
                    for part, charts in _TOGETHER.items()
                }
            )

    return TensorBoard(SummaryWriter(log_dir=str(config.output_dir / "logs"), purge_step=first_step))


class _Whole:
    """Hands a tracker's new entry the lines of the steps that a resumed run goes on from."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Begin an entry, and fill it up to the present step."""
        super().on_train_begin(args, state, control, **others)  # type: ignore[misc]
        for log in state.log_history:
            then = copy.copy(state)
            then.global_step = log["step"]
            logs = {name: value for name, value in log.items() if name != "step"}
            self.on_log(args, then, control, logs=logs, **others)  # type: ignore[attr-defined]


def wandb_callback(config: Config, say: Callable[[str], None]) -> Any:
    """Weights & Biases; without a key or a mode in the environment it writes to the run's `logs/wandb` only."""
    online = bool(os.environ.get("WANDB_API_KEY"))
    mode = os.environ.get("WANDB_MODE") or ("online" if online else "offline")
    if mode != "online":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    from transformers.integrations import WandbCallback

    class Wandb(_Whole, WandbCallback):
        """Begins an entry of its own for each training, and ends it."""

        def setup(self, args: Any, state: Any, model: Any, **_: Any) -> None:
            if self._wandb.run is None:
                folder = config.output_dir / "logs"
                folder.mkdir(parents=True, exist_ok=True)
                self._wandb.init(
                    project=os.environ.get("WANDB_PROJECT", PROJECT),
                    name=args.run_name,
                    dir=str(folder.resolve()),
                    mode=mode,
                    config={PROJECT: config.model_dump(mode="json")},
                    settings=self._wandb.Settings(silent=True, console="off"),
                )
            super().setup(args, state, model)

        def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            super().on_train_end(args, state, control, **others)
            self.close()

        def close(self, failed: bool = False) -> None:
            if self._wandb.run is not None:
                self._wandb.finish(exit_code=int(failed))

    where = "WANDB_MODE=online sends it" if mode == "offline" else "as WANDB_MODE or WANDB_API_KEY says"
    say(f"watch: Weights & Biases, {mode}, in {config.output_dir / 'logs' / 'wandb'} ({where})")
    return Wandb()


def mlflow_callback(config: Config, say: Callable[[str], None]) -> Any:
    """MLflow; without a server in the environment it writes to the run's `logs/mlflow.db`."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    own = not os.environ.get("MLFLOW_TRACKING_URI")
    folder = (config.output_dir / "logs").resolve()
    from transformers.integrations import MLflowCallback

    class MLflow(_Whole, MLflowCallback):
        """Writes beside the run where nothing else is said, and forgets that place at the end."""

        def setup(self, args: Any, state: Any, model: Any) -> None:
            if own:
                folder.mkdir(parents=True, exist_ok=True)
                self._ml_flow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
                if not os.environ.get("MLFLOW_EXPERIMENT_NAME"):
                    if self._ml_flow.get_experiment_by_name(PROJECT) is None:
                        self._ml_flow.create_experiment(PROJECT, (folder / "mlflow").as_uri())
                    self._ml_flow.set_experiment(PROJECT)
            super().setup(args, state, model)
            self._ml_flow.log_params({f"{PROJECT}/{key}": str(value)[:250] for key, value in config})

        def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            super().on_train_end(args, state, control, **others)
            self.close()

        def close(self, failed: bool = False) -> None:
            self._ml_flow.flush_async_logging()
            if self._auto_end_run and self._ml_flow.active_run() is not None:
                self._ml_flow.end_run("FAILED" if failed else "FINISHED")
            if own:
                self._ml_flow.set_tracking_uri(None)

    where = str(folder / "mlflow.db") if own else os.environ["MLFLOW_TRACKING_URI"]
    say(f"watch: mlflow ui --backend-store-uri {f'sqlite:///{where}' if own else where}")
    return MLflow()


def trackio_callback(config: Config, say: Callable[[str], None]) -> Any:
    """Trackio, in its own local folder (`TRACKIO_DIR`) unless the environment names a space or a server."""
    remote = any(os.environ.get(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
    from transformers.integrations import TrackioCallback

    class Trackio(_Whole, TrackioCallback):
        """Says nothing of its own where it is local."""

        def setup(self, args: Any, state: Any, model: Any, **others: Any) -> None:
            with contextlib.nullcontext() if remote else contextlib.redirect_stdout(io.StringIO()):
                super().setup(args, state, model, **others)
            self._trackio.config[PROJECT] = config.model_dump(mode="json")

        def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            with contextlib.nullcontext() if remote else contextlib.redirect_stdout(io.StringIO()):
                super().on_train_end(args, state, control, **others)

        def close(self, failed: bool = False) -> None:
            if self._initialized:  # trackio keeps no word of how an entry ended
                with contextlib.redirect_stdout(io.StringIO()):
                    self._trackio.finish()
                self._initialized: bool = False

    say(f"watch: trackio show --project {PROJECT}")
    return Trackio()


def make_trackers(config: Config, first_step: int | None, say: Callable[[str], None]) -> list[Any]:
    """A callback for each name in `report_to`, whose packages are only now imported.

    Args:
        config: all keys.
        first_step: when resuming, the first step that will be taken again.
        say: prints one line.
    """
    made = []
    for name in config.trackers():
        if name == "tensorboard":
            made.append(tensorboard_callback(config, first_step))
            say(f"watch: tensorboard --logdir {config.output_dir / 'logs'}")
        else:
            make = {"wandb": wandb_callback, "mlflow": mlflow_callback, "trackio": trackio_callback}[name]
            made.append(make(config, say))
    return made


def text_writer(trackers: list[Any]) -> Callable[[str, str, int], None] | None:
    """What writes text to TensorBoard under a name at a step, or None where it is not among the trackers."""
    from transformers.integrations import TensorBoardCallback

    found = next((tracker for tracker in trackers if isinstance(tracker, TensorBoardCallback)), None)
    if found is None:
        return None

    def write(name: str, text: str, step: int) -> None:
        if found.tb_writer is not None:
            found.tb_writer.add_text(name, text, step)
            found.tb_writer.flush()

    return write
