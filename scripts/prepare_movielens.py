"""Prepare a MovieLens set: a thin front for `rectune prepare`.

python scripts/prepare_movielens.py --output-dir data/movielens_qwen3 --history-len 15 --rating-threshold 4.0
"""

from __future__ import annotations

import argparse

try:
    from rectune.cli import main
except ImportError:
    raise SystemExit("rectune is not installed here: pip install -e .") from None


def command(arguments: list[str] | None = None) -> list[str]:
    """The arguments of `rectune` that mean the same."""
    parser = argparse.ArgumentParser(description="Prepare a MovieLens set.", allow_abbrev=False)
    parser.add_argument("--output-dir", help="dataset folder; default: that of the configuration")
    parser.add_argument("--history-len", type=int, default=15, help="warm-up events, longest history (%(default)s)")
    parser.add_argument("--rating-threshold", type=float, default=4.0, help="liked from this rating on (%(default)s)")
    parser.add_argument("--dataset", default="ml-latest-small", help="name, folder or zip (%(default)s)")
    parser.add_argument("--config", default="configs/qwen3_movielens_qlora.yaml", help="all other keys (%(default)s)")
    options = parser.parse_intermixed_args(arguments)
    keys = ["history_len", "rating_threshold", "dataset"]
    overrides = [f"{key}={getattr(options, key)}" for key in keys]
    if options.output_dir is not None:
        overrides.append(f"dataset_dir={options.output_dir}")
    return ["prepare", options.config, *overrides]


if __name__ == "__main__":
    main(command())
