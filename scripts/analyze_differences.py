"""A look at where base and tuned disagree, in a folder that a comparison wrote.

python scripts/analyze_differences.py --comparison_dir output/qwen3-7b-movielens-qlora/comparison --examples 5
"""

from __future__ import annotations

import argparse
from pathlib import Path

try:
    from rectune.cli import reported, say
except ImportError:
    raise SystemExit("rectune is not installed here: pip install -e .") from None


def analyze_differences(arguments: list[str] | None = None) -> None:
    """Show improvements, regressions and what both get wrong."""
    from rectune.report.analyze import analyze

    parser = argparse.ArgumentParser(description="Show where base and tuned disagree.", allow_abbrev=False)
    parser.add_argument(
        "--comparison_dir", type=Path, default=Path("output/qwen3-7b-movielens-qlora/comparison"),
        help="what compare_base_vs_lora.py, or infer_lora.py --compare_base, wrote (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--examples", type=int, default=5, help="examples of each kind (%(default)s)")
    options = parser.parse_intermixed_args(arguments)
    analyze(options.comparison_dir, options.examples, say)


if __name__ == "__main__":
    reported(analyze_differences)
