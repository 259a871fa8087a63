"""A text file as data: blocks of tokens to foretell the next one, or a line an input, unlabelled.

The first 80 % train, the next 10 % validate and the last 10 % test: of blocks as they stand, of
lines in an order that the seed decides.
"""

from pathlib import Path

import numpy as np
import torch

from haq.datasets.splits import from_splits, parts_of
from haq.datasets.tensors import AS_IT_IS, Data, Reading
from haq.datasets.tokenizer import Tokenizer, blocks, read_tokenizer
from haq.errors import DataError

LEAST = 10
"""Blocks or lines of a file."""


def load(where: str, seed: int = 0, size: int | None = None, reading: Reading = AS_IT_IS) -> Data:
    """Return the text in a file as tokens.

    Args:
        where: A file of UTF-8.
        seed: Decides the order of lines.
        size: Not used.
        reading: Its tokenizer, the most tokens of an input, and whether the next token is foretold.

    Raises:
        DataError: The file or the tokenizer is missing or cannot be read, or the text is too short.
    """
    text = _text(where)
    tokenizer = read_tokenizer(reading.tokenizer, f"text:{where}", reading.tokens)
    if reading.next_token:
        return _blocks(where, text, tokenizer, reading.length)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < LEAST:
        raise DataError(f"text:{where} has {len(lines)} lines that are not empty; give {LEAST}")
    return of_lines(lines, tokenizer, reading.length, seed, "text")


def of_lines(lines: list[str], tokenizer: Tokenizer, length: int, seed: int, name: str) -> Data:
    """Return texts as inputs without labels, in an order that the seed decides."""
    inputs = tokenizer.padded(tokenizer.ids(lines, special=True), length)
    order = torch.from_numpy(np.random.RandomState(seed % 2**32).permutation(len(lines)))
    return from_splits([inputs[rows] for rows in parts_of(order)], name)


def _blocks(where: str, text: str, tokenizer: Tokenizer, length: int) -> Data:
    (ids,) = tokenizer.ids([text], special=False)
    inputs, labels = blocks(ids, length)
    if len(inputs) < LEAST:
        raise DataError(
            f"text:{where} has {len(ids)} tokens, {len(inputs)} blocks of {length}; give a longer "
            f"text ({LEAST} blocks), or a smaller --length"
        )
    pairs = zip(parts_of(inputs), parts_of(labels), strict=True)
    return from_splits([tuple(pair) for pair in pairs], "text")


def _text(where: str) -> str:
    if not where:
        raise DataError("text needs a file: text:FILE")
    path = Path(where).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"text:{where} is not UTF-8: {error.reason} at {error.start}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"text:{where} cannot be read: {reason}") from error
