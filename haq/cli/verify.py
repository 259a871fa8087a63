"""``haq verify``: check an ONNX file."""

import json
from pathlib import Path
from typing import Annotated

import typer

from haq.cli.options import NETWORK, Length, Size, Tokenizer, option
from haq.errors import HaqError


def verify_command(
    file: Annotated[Path, typer.Argument(help="A file that haq export --format onnx wrote.")],
    data: Annotated[
        str | None,
        option(NETWORK, "Data to test on, as for haq search.", metavar="NAME",
               show_default="none: no accuracy"),
    ] = None,
    size: Size = None,
    tokenizer: Tokenizer = None,
    length: Length = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:  # fmt: skip
    """Check an ONNX file: valid, loads, integer kernels, exact integers, accuracy."""
    from haq.cli.terminal.onnx import print_verified
    from haq.cli.terminal.progress import progress
    from haq.datasets import load
    from haq.runs.verify import reading_for, verify

    if not file.is_file():
        raise HaqError(f"there is no file {file}: haq export --format onnx writes one")
    if size is not None and data is None:
        raise HaqError(f"--size {size} is of the images of --data, and there are none")
    images = None if data is None else load(data, 0, size, reading_for(file, tokenizer, length))
    with progress() as on_progress:
        result = verify(file, images, on_progress)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_verified(file, result)
