"""Build Qwen3's tokenizer without the model hub, from what the package index carries.

The `dashscope` wheel holds Qwen's token ranks (`qwen.tiktoken`), and trl ships Qwen3's chat template. Together with
Qwen3's published pre-tokenisation pattern and special tokens they make a folder that
`AutoTokenizer.from_pretrained` loads:

    python scripts/build_qwen_tokenizer.py output/qwen3-tokenizer
    rectune inspect qwen3_movielens_qlora model_name_or_path=output/qwen3-tokenizer
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "dashscope==2.0.2"
RANKS = "dashscope/resources/qwen.tiktoken"
RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Ids 151643 and up, in this order, as in Qwen3's published tokenizer_config.json; the last twelve are not "special".
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ADDED = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip


def chat_template() -> str:
    """Qwen3's own chat template, as trl ships it; trl itself is not imported."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        raise SystemExit("trl is not installed, and it carries Qwen3's chat template: pip install trl")
    return (Path(spec.origin).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")


def fetch_ranks(folder: Path) -> Path:
    """Qwen's token ranks out of the wheel, checked by SHA-256."""
    target = folder / "qwen.tiktoken"
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        subprocess.run([*command, "--dest", temporary, WHEEL], check=True, capture_output=True)
        with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as wheel:
            content = wheel.read(RANKS)
    digest = hashlib.sha256(content).hexdigest()
    if digest != RANKS_SHA256:
        raise SystemExit(f"{WHEEL}: {RANKS} has SHA-256 {digest}, expected {RANKS_SHA256}")
    folder.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def build(folder: Path) -> Path:
    """Write the tokenizer into `folder` and return it."""
    from tokenizers import AddedToken, normalizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = fetch_ranks(folder)
    backend = TikTokenConverter(vocab_file=str(ranks), pattern=PATTERN).converted()
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in ADDED])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=131072
    )
    tokenizer.chat_template = chat_template()
    tokenizer.save_pretrained(folder)
    ranks.unlink()
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    print(f"written: {build(Path(sys.argv[1]))}")
