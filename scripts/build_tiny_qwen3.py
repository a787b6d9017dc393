"""Write a tiny random Qwen3 with its tokenizer, and a small made-up MovieLens: what tests and crash campaigns run on.

python scripts/build_tiny_qwen3.py FOLDER    writes FOLDER/model and FOLDER/movielens
"""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any


def _builder() -> Any:
    """The script that knows Qwen's pre-tokenisation, special tokens and chat template."""
    spec = importlib.util.spec_from_file_location("builder", Path(__file__).with_name("build_qwen_tokenizer.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer of about 600 tokens with Qwen3's pre-tokenisation, special tokens and chat template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    builder = _builder()
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(builder.PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    text = ["Yes No Yes No Answer: Will the user like the candidate film? rating 4.0 (1995) The user's last films"] * 9
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(text, trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in builder.SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in builder.ADDED])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = builder.chat_template()
    return tokenizer


def write_tiny_qwen3(folder: Path, tokenizer: Any) -> None:
    """A folder with a random two-layer Qwen3 and its tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    settings = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3ForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_movielens(folder: Path) -> None:
    """A MovieLens folder of 12 users, 30 films and 26 ratings each, some at the same second."""
    folder.mkdir(parents=True, exist_ok=True)
    films = ["movieId,title,genres"]
    films += [f'{number},"Film {number}, The ({1980 + number})",Drama|Comedy' for number in range(1, 31)]
    (folder / "movies.csv").write_text("\n".join(films) + "\n", encoding="utf-8")
    draw = random.Random(0)
    ratings = ["userId,movieId,rating,timestamp"]
    for user in range(1, 13):
        for at, film in enumerate(draw.sample(range(1, 31), 26)):
            # The odd films are good, and one film in five shares its second with the one before.
            rating = draw.choice([4.0, 4.5, 5.0] if film % 2 else [1.0, 2.5, 3.5])
            ratings.append(f"{user},{film},{rating},{1000 * user + at - (at % 5 == 4)}")
    (folder / "ratings.csv").write_text("\n".join(ratings) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: build_tiny_qwen3.py FOLDER")
    write_tiny_qwen3(Path(sys.argv[1]) / "model", tiny_tokenizer())
    write_movielens(Path(sys.argv[1]) / "movielens")
