"""A language model with its tokenizer and a text, so small that a search takes a second."""

from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = "one two three four five six seven eight nine ten".split()


def write_language_model(folder: Path, positions: int = 16) -> None:
    """Write gpt/, as ``save_pretrained`` does, and text.txt."""
    config = transformers.GPT2Config(
        vocab_size=12, n_embd=8, n_layer=1, n_head=2, n_positions=positions, bos_token_id=1,
        eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "gpt")
    vocabulary = {word: at for at, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "gpt" / "tokenizer.json"))
    lines = [" ".join(WORDS[(3 * at + k) % 10] for k in range(5)) for at in range(60)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
