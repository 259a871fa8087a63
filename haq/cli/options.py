"""Options that several commands have, and what their texts mean.

Nothing heavy is imported here, so that ``haq --help`` is instant.
"""

from collections.abc import Callable, Collection
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from haq.cli import completion
from haq.errors import HaqError, look_up

if TYPE_CHECKING:
    from haq.allocation.schemes import Formats

Command = TypeVar("Command", bound=Callable[..., None])

NETWORK = "Network and data"
HARDWARE = "Hardware and budget"
BITS = "Bits"
SEARCH = "Search"
QUANTIZATION = "Quantization"
TRAINING = "Fine-tuning"
RUN = "Run"


def option(panel: str, text: str, *names: str, metavar: str | None = None, **more: Any) -> Any:
    """Return an option of a command, shown in a panel of its help."""
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, **more)


Model = Annotated[
    str,
    option(NETWORK, "Name such as resnet20, torchvision:NAME, timm:NAME, hf:DIR (haq models lists "
           "all), or package.module:factory.", metavar="NAME",
           autocompletion=completion.among(completion.MODELS)),
]  # fmt: skip
Data = Annotated[
    str,
    option(NETWORK, "digits, cifar10:DIR, folder:DIR (images), dataset:DIR (of Hugging Face's "
           "datasets), text:FILE or package.module:factory.", metavar="NAME",
           autocompletion=completion.among(completion.DATA)),
]  # fmt: skip
Width = Annotated[float, option(NETWORK, "Width multiplier of MobileNets.", metavar="FACTOR")]
Size = Annotated[
    int | None,
    option(NETWORK, "Height and width of images from files, in pixels.", metavar="N",
           show_default="the model's own, or 224"),
]  # fmt: skip
MeasuredWeights = Annotated[
    Path | None,
    option(NETWORK, "Float weights, as haq train writes them.", metavar="FILE",
           show_default="random ones"),
]  # fmt: skip
MeasuredData = Annotated[
    str | None,
    option(NETWORK, "Data that give the images' size, the classes and the clips.", metavar="NAME",
           show_default="none: --size and random clips"),
]  # fmt: skip
MeasuredSize = Annotated[
    int | None,
    option(NETWORK, "Height and width of an image, in pixels.", metavar="N", min=1,
           show_default="the model's own"),
]  # fmt: skip
Metric = Annotated[
    str | None,
    option(NETWORK, "What networks are scored by: top1, top5, miou or perplexity by labels; cosine "
           "or agreement with the float network without.", metavar="NAME",
           autocompletion=completion.among(completion.METRICS),
           show_default="top1; perplexity for tokens, miou for pixels, agreement without labels"),
]  # fmt: skip
Tokenizer = Annotated[
    Path | None,
    option(NETWORK, "Folder of the tokenizer that reads text.", metavar="DIR",
           show_default="the model's own folder"),
]  # fmt: skip
Length = Annotated[
    int | None,
    option(NETWORK, "Most tokens of one input of text.", metavar="N", show_default="128"),
]  # fmt: skip
Schemes = Annotated[
    list[str] | None,
    option(BITS, "What becomes of activations: static, weight-only (float), dynamic (8 bits "
           "as a linear layer runs, a scale for each token), dynamic-tensor (one for each "
           "call) or codebook (float; the weights of a layer share 2^bits values). "
           "May be repeated.", metavar="NAME", show_default="static",
           autocompletion=completion.among(completion.SCHEMES)),
]  # fmt: skip
Groups = Annotated[
    str | None,
    option(BITS, "Weights of linear layers and embeddings that share a scale, such as 32,128; "
           "0 for one scale a channel. With weight-only and dynamic.", metavar="SIZES",
           show_default="one scale a channel"),
]  # fmt: skip
Seed = Annotated[int, option(SEARCH, "Number that decides everything random.", metavar="N")]
Threads = Annotated[
    int | None,
    option(RUN, "CPU threads of each process.", metavar="N",
           show_default="all cores, shared by the workers; 1 for digits"),
]  # fmt: skip
Distill = Annotated[
    str | None,
    option(TRAINING, "Losses against the teacher with their weights, such as kd:0.9+hint:1, or "
           "none for labels alone.", metavar="LOSSES", show_default="kd:0.9; none with --paper"),
]  # fmt: skip
Track = Annotated[
    list[str] | None,
    option(RUN, "Where to follow the run: tensorboard:FOLDER, mlflow:URI or wandb:PROJECT. May be "
           "repeated.", metavar="TRACKER", show_default="nowhere",
           autocompletion=completion.among(completion.TRACKERS)),
]  # fmt: skip
Target = Annotated[
    str,
    option(HARDWARE, "Name that haq targets lists, or FILE.json, or table:FILE.csv.",
           metavar="NAME", autocompletion=completion.targets),
]  # fmt: skip


RunFolder = Annotated[
    str, typer.Argument(help="A run's name or folder.", autocompletion=completion.runs)
]


def threads_for(asked: int | None, data: str, workers: int = 1) -> int:
    """Return how many threads to use: as asked, or each worker's share of this process's cores.

    Networks for the digits are so small that a second thread only waits for the first.
    """
    from haq.runs.job import default_threads

    if asked is not None and asked < 1:
        raise HaqError(f"threads {asked}: give at least 1")
    return asked or (1 if data == "digits" else max(1, default_threads() // workers))


OUTPUT = ("quiet", "log")
"""Parameters that say nothing of what is to be done; see ``haq.cli.terminal.output``."""


def given(context: typer.Context) -> dict[str, Any]:
    """Return the parameters that stand on the command line, in their order in the help.

    Those of the output are left out.
    """
    return {
        name: value
        for name, value in context.params.items()
        if name not in OUTPUT and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    }


def flag(parameter: str) -> str:
    """Return the option of a parameter as it is written on the command line."""
    return "--" + parameter.replace("_", "-")


def check_alone(context: typer.Context, but: Collection[str] = ()) -> None:
    """Refuse options beside --resume, but for some: a run goes on as it was asked for."""
    others = [flag(name) for name in given(context) if name not in ("resume", *but)]
    if others:
        raise HaqError(
            f"--resume goes on with a run as it was asked for; leave out {', '.join(others)}"
        )


def with_options_of(
    command: Callable[..., None], but: Collection[str]
) -> Callable[[Command], Command]:
    """Give a command the options of another one too, but for some: it gets them as keywords."""

    def decorated(own: Command) -> Command:
        named = [p for p in signature(own).parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {parameter.name for parameter in named} | set(but)
        more = [p for p in signature(command).parameters.values() if p.name not in taken]
        own.__signature__ = Signature([*named, *more])  # type: ignore[attr-defined]
        own.__annotations__ = {p.name: p.annotation for p in (*named, *more)}
        return own

    return decorated


def width_range(text: str) -> tuple[int, int]:
    """Return the two ends of a range of bit-widths.

    >>> width_range("2..8"), width_range("4")
    ((2, 8), (4, 4))
    """
    low, dots, high = text.partition("..")
    try:
        return int(low), int(high if dots else low)
    except ValueError:
        raise HaqError(f"weight-bits {text!r}: write a range like 2..8, or one number") from None


def groups_of(text: str | None) -> tuple[int, ...] | None:
    """Return the sizes of groups in a text such as 32,128; None where there is none.

    Raises:
        HaqError: The text is something else.
    """
    try:
        return None if text is None else tuple(int(size) for size in text.split(","))
    except ValueError:
        raise HaqError(f"groups {text!r}: write sizes like 32,128, or one number") from None


def formats_of(scheme: list[str] | None, groups: str | None) -> "Formats":
    """Return the number formats that two options ask for.

    Raises:
        HaqError: There are none of such a name or size, or they do not go together.
    """
    from haq.allocation.schemes import SCHEMES, STATIC, Formats, Scheme

    known: dict[str, Scheme] = {name: name for name in SCHEMES}
    schemes = tuple(look_up(known, "scheme", name) for name in scheme or STATIC.schemes)
    formats = Formats(schemes, groups_of(groups) or ())
    formats.check()
    return formats
