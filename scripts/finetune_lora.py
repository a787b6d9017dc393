"""Fine-tune with LoRA or QLoRA: a thin front for `rectune train`.

python scripts/finetune_lora.py --config configs/qwen3_movielens_qlora.yaml
python scripts/finetune_lora.py --config configs/qwen3_7b_movielens_qlora.yaml --resume --extra-epochs 2
"""

from __future__ import annotations

import argparse

try:
    from rectune.cli import main
except ImportError:
    raise SystemExit("rectune is not installed here: pip install -e .") from None


def command(arguments: list[str] | None = None) -> list[str]:
    """The arguments of `rectune` that mean the same."""
    parser = argparse.ArgumentParser(description="Fine-tune with LoRA or QLoRA.", allow_abbrev=False)
    parser.add_argument("--config", default="configs/qwen3_movielens_qlora.yaml", help="YAML file (%(default)s)")
    parser.add_argument("--clear-cache", action="store_true", help="tokenise again")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint of output_dir")
    parser.add_argument("--resume_from_checkpoint", "--resume-from-checkpoint", help="go on from this checkpoint")
    parser.add_argument("--extra-epochs", type=int, default=0, help="epochs beyond num_train_epochs")
    parser.add_argument("--overwrite", action="store_true", help="remove an earlier run in output_dir")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of configuration keys")
    options = parser.parse_intermixed_args(arguments)
    found = ["train", options.config, *options.overrides, "--extra-epochs", str(options.extra_epochs)]
    if options.resume_from_checkpoint is not None:
        found += ["--resume-from-checkpoint", options.resume_from_checkpoint]
    for name in ("clear_cache", "resume", "overwrite"):
        if getattr(options, name):
            found.append(f"--{name.replace('_', '-')}")
    return found


if __name__ == "__main__":
    main(command())
