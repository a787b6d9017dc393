"""Ask a tuned model: a thin front for `rectune score`.

python scripts/infer_lora.py                                    one canned prompt, base beside tuned
python scripts/infer_lora.py --test_file data/movielens_qwen3/test_raw.jsonl --output_dir output/infer
"""

from __future__ import annotations

import argparse

try:
    from rectune.cli import main
except ImportError:
    raise SystemExit("rectune is not installed here: pip install -e .") from None


def command(arguments: list[str] | None = None) -> list[str]:
    """The arguments of `rectune` that mean the same."""
    parser = argparse.ArgumentParser(description="Ask a tuned model.", allow_abbrev=False)
    parser.add_argument("--adapter_dir", default="output/qwen3-movielens-qlora", help="run folder (%(default)s)")
    parser.add_argument("--test_file", help="test_raw.jsonl or Alpaca JSON; without it, one canned prompt is asked")
    parser.add_argument("--output_dir", help="where the answers go; default: inference/ in the run folder")
    parser.add_argument("--max_samples", type=int, help="at most this many records")
    parser.add_argument("--compare_base", action="store_true", help="ask the untuned model too")
    parser.add_argument("--mode", choices=("logits", "generate"), help="logits when left out")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of configuration keys")
    options = parser.parse_intermixed_args(arguments)
    found = ["score", options.adapter_dir, *options.overrides]
    if options.test_file is None:
        for name in ("output_dir", "max_samples", "compare_base", "mode"):
            if getattr(options, name):
                parser.error(f"--{name} needs --test_file, for example data/movielens_qwen3/test_raw.jsonl")
        return [*found, "--demo"]
    found += ["--input", options.test_file, "--mode", options.mode or "logits"]
    if options.output_dir is not None:
        found += ["--output", options.output_dir]
    if options.max_samples is not None:
        found += ["--max-samples", str(options.max_samples)]
    return [*found, "--compare-base"] if options.compare_base else found


if __name__ == "__main__":
    main(command())
