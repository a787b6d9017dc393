"""Follow examples through the six steps and measure prompt lengths: a thin front for `rectune inspect`.

python scripts/check_seq_len.py --config configs/qwen3_7b_movielens_qlora.yaml --show-examples 2
"""

from __future__ import annotations

import argparse

try:
    from rectune.cli import main
except ImportError:
    raise SystemExit("rectune is not installed here: pip install -e .") from None


def command(arguments: list[str] | None = None) -> list[str]:
    """The arguments of `rectune` that mean the same."""
    parser = argparse.ArgumentParser(description="Show and measure the training prompts.", allow_abbrev=False)
    parser.add_argument("--config", default="configs/qwen3_movielens_qlora.yaml", help="YAML file (%(default)s)")
    parser.add_argument("--show-examples", type=int, default=2, help="examples to follow (%(default)s)")
    parser.add_argument("--max-samples", type=int, help="measure at most this many prompts; default: all")
    parser.add_argument("--cutoff-len", type=int, help="try another cutoff_len; default: that of the configuration")
    parser.add_argument("--char-only", action="store_true", help="count characters; no tokenizer needed")
    parser.add_argument("--percentiles", default="50,90,95,99,100", help="which to report (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of configuration keys")
    options = parser.parse_intermixed_args(arguments)
    found = ["inspect", options.config, *options.overrides, "--percentiles", options.percentiles]
    for name in ("show_examples", "max_samples", "cutoff_len"):
        if getattr(options, name) is not None:
            found += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return [*found, "--char-only"] if options.char_only else found


if __name__ == "__main__":
    main(command())
