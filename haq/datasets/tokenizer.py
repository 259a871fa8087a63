"""Text to tokens, by a tokenizer in a local folder; no code from it is run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from haq.errors import DataError
from haq.extras import library
from haq.network.inputs import Batch

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model",
         "spiece.model")  # fmt: skip
"""Of which a folder with a tokenizer has one at least."""


class Tokenizer(NamedTuple):
    """A tokenizer of a folder.

    Attributes:
        folder: Where it lies.
        codec: Of the tokenizers library where there is a tokenizer.json, else of transformers.
        fast: Whether it is the former.
    """

    folder: Path
    codec: Any
    fast: bool

    def ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Return the tokens of each text, with the special ones around it or without."""
        if self.fast:
            encoded = self.codec.encode_batch(list(texts), add_special_tokens=special)
            return [one.ids for one in encoded]
        result: list[list[int]] = self.codec(list(texts), add_special_tokens=special)["input_ids"]
        return result

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self.codec.get_vocab_size() if self.fast else len(self.codec)

    def padded(self, rows: Sequence[Sequence[int]], length: int) -> Batch:
        """Return tokens and mask, all rows cut or padded to the longest, ``length`` at most."""
        cut = [
            row[: length - 1] + row[-1:] if len(row) > length else row for row in map(list, rows)
        ]
        width = max(2, *map(len, cut)) if cut else 2
        ids, mask = torch.zeros(2, len(cut), width, dtype=torch.int64)
        for place, row in enumerate(cut):
            ids[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[place, : len(row)] = 1
        return Batch((ids, mask), ("input_ids", "attention_mask"))


def read_tokenizer(folder: str | None, what: str, known: int | None = None) -> Tokenizer:
    """Return the tokenizer in a folder.

    Args:
        folder: None where nothing names one.
        what: Needs it, for messages.
        known: How many tokens the model knows; None where nobody says.

    Raises:
        DataError: There is none, its library is not installed, or it has more tokens than the
            model.
    """
    if folder is None:
        raise DataError(
            f"{what} needs a tokenizer: give --tokenizer DIR, a folder with a tokenizer.json"
        )
    place = Path(folder).expanduser()
    if not any((place / name).is_file() for name in FILES):
        raise DataError(
            f"{what} needs a tokenizer, and {place} has none (no {FILES[0]}): give --tokenizer DIR"
        )
    fast = (place / "tokenizer.json").is_file()
    name = "tokenizers" if fast else "transformers"
    module = library(name, "transformers", what, DataError)
    try:
        if fast:
            codec = module.Tokenizer.from_file(str(place / "tokenizer.json"))
            codec.no_padding()
            codec.no_truncation()
        else:
            codec = module.AutoTokenizer.from_pretrained(
                str(place), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"the tokenizer in {place} cannot be read: {reason}") from error
    tokenizer = Tokenizer(place, codec, fast)
    if known is not None and tokenizer.size > known:
        raise DataError(
            f"the tokenizer in {place} has {tokenizer.size} tokens, and the model knows {known}: "
            "give the model's own with --tokenizer DIR"
        )
    return tokenizer


def blocks(ids: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """Return tokens in blocks (N, length), and for each the one that follows; what is left is cut.

    >>> blocks([5, 6, 7, 8, 9, 1], 2)
    (tensor([[5, 6],
            [7, 8]]), tensor([[6, 7],
            [8, 9]]))
    """
    count = (len(ids) - 1) // length
    stream = torch.tensor(ids, dtype=torch.int64)
    inputs = stream[: count * length].view(count, length)
    return inputs, stream[1 : count * length + 1].view(count, length)
