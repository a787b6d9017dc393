"""Append what a finished run measured to benchmarks/RESULTS.md: machine, command, date, figures.

python benchmarks/append_result.py output/qwen3-movielens-stream
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
SHOWN = ("auc", "uauc", "accuracy", "f1", "loss", "ece")


def machine() -> str:
    """The device that torch sees, and the processor."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{device}; {platform.machine()}, {torch.get_num_threads()} threads; torch {torch.__version__}"


def training_speed(run: Path) -> str:
    """Sequences per second of training, from the run's log."""
    history = json.loads((run / "log_history.json").read_text(encoding="utf-8"))
    last = [log for log in history if "train_samples_per_second" in log]
    return f"{last[-1]['train_samples_per_second']:.2f} sequences/s in training" if last else "no training speed logged"


def section(run: Path) -> str:
    """The Markdown of one run."""
    report = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    head = "| model | " + " | ".join(SHOWN) + " |\n" + "|---" * (len(SHOWN) + 1) + "|"
    rows = []
    for name, model in report["models"].items():
        cells = []
        for metric in SHOWN:
            value, interval = model["metrics"][metric], model["intervals"].get(metric)
            text = "–" if value is None else f"{value:.4f}"
            cells.append(text + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""))
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    made = report["how_made"]
    return "\n".join(
        [
            f"\n## {made['model']}, {datetime.date.today().isoformat()}\n",
            f"- machine: {machine()}",
            f"- command: `rectune run` with {run}/config.yaml; evaluation `{made['command']}`",
            f"- data: {made['data']}; {report['rows']:,} rows, {report['users']:,} users; {report['protocol']}",
            f"- speed: {training_speed(run)}",
            f"- {report['verdict']}\n",
            head,
            *rows,
            "",
        ]
    )


def main() -> None:
    """Append the run named on the command line."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "metrics.json").is_file():
        raise SystemExit(__doc__)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(section(Path(sys.argv[1])))
    print(f"appended to {RESULTS}")


if __name__ == "__main__":
    main()
