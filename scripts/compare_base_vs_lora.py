"""Base beside tuned, row by row: a thin front for `rectune compare`.

python scripts/compare_base_vs_lora.py --config configs/qwen3_7b_movielens_qlora.yaml
"""

from __future__ import annotations

import argparse

try:
    from rectune.cli import main, reported
except ImportError:
    raise SystemExit("rectune is not installed here: pip install -e .") from None


def command(arguments: list[str] | None = None) -> list[str]:
    """The arguments of `rectune` that mean the same; the run compared is the configuration's output_dir."""
    from pathlib import Path

    from rectune.config import load_config
    from rectune.shipped import find_config

    parser = argparse.ArgumentParser(description="Compare a tuned model with its base.", allow_abbrev=False)
    parser.add_argument("--config", default="configs/qwen3_7b_movielens_qlora.yaml", help="YAML file (%(default)s)")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="(%(default)s)")
    parser.add_argument("--output_dir", help="where the files go; default: comparison/ in the run folder")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of configuration keys")
    options = parser.parse_intermixed_args(arguments)
    run = load_config(find_config(Path(options.config)), options.overrides).output_dir
    found = ["compare", str(run), "--split", options.split]
    return found if options.output_dir is None else [*found, "--output", options.output_dir]


if __name__ == "__main__":
    reported(lambda: main(command()))
