"""``haq pack``, ``haq unpack`` and ``haq diff``: networks sent in few bytes."""

import json
from pathlib import Path
from typing import Annotated

import typer

Base = Annotated[
    Path | None,
    typer.Option(
        help="The file that the receiver has: the packet is the difference to it.",
        metavar="FILE",
        show_default="none: the network as a whole",
    ),
]


def pack_command(
    files: Annotated[
        list[Path],
        typer.Argument(help="A safetensors file; several become a family.", metavar="FILE..."),
    ],
    out: Annotated[Path, typer.Option(help="The packet, NAME.haqz.", metavar="FILE")],
    base: Base = None,
    bits: Annotated[
        int | None,
        typer.Option(
            help="Round float32 weights to so many bits, 2 to 8.",
            metavar="N",
            show_default="exact",
        ),
    ] = None,
    root: Annotated[
        str,
        typer.Option(
            help="Of a family, the file (without its suffix) that the others are predicted from; "
            "auto takes the one with the smallest packet.",
            metavar="NAME",
        ),
    ] = "auto",
) -> None:
    """Write networks as one small packet: whole, as a difference, or as a family."""
    from haq.cli.terminal.updates import print_packed
    from haq.formats.update.pack import pack

    print_packed(pack(files, out, base, bits, root))


def unpack_command(
    packets: Annotated[
        list[Path],
        typer.Argument(help="A packet, or those of a chain in any order.", metavar="PACKET..."),
    ],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="The file that is held, where the packet is a difference.",
            metavar="FILE",
            show_default="none",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Which member of a family.", metavar="NAME", show_default="the only one"),
    ] = None,
) -> None:
    """Write the network in a packet, if it is whole and meant for what is held."""
    from haq.formats.update.pack import unpack

    network = unpack(packets, out, base, only)
    typer.echo(f"{out}: {out.stat().st_size / 1000:.1f} kB, network {network.id}")


def pull_command(
    url: Annotated[
        str,
        typer.Argument(
            help="Of a network: https://HOST/v1/channels/NAME/network, or "
            "https://HOST/v1/runs/ID/network.",
            metavar="URL",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="The file that is held: only the difference is sent.",
            metavar="FILE",
            show_default="none: the network as a whole",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="For the service; better given as HAQ_TOKEN in the environment.",
            envvar="HAQ_TOKEN",
            metavar="TOKEN",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Get the newest network of a channel or a run from a service, if it is not the one held."""
    from haq.formats.update.pull import pull

    pulled = pull(url, out, base, token)
    if not pulled.size:
        typer.echo(f"{base} is the newest network, {pulled.network[:12]}; nothing was written")
        return
    kind = "difference" if pulled.difference else "whole network"
    typer.echo(
        f"{out}: network {pulled.network[:12]}, a {kind} of {pulled.size / 1000:.1f} kB, of which "
        f"{pulled.received / 1000:.1f} kB came now"
    )


def diff_command(
    old: Annotated[Path, typer.Argument(help="A safetensors file.", metavar="OLD")],
    new: Annotated[Path, typer.Argument(help="Another one.", metavar="NEW")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Show what changed from one network to another, and what sending it takes."""
    from haq.cli.terminal.updates import as_fields, print_difference
    from haq.formats.update.difference import diff

    difference = diff(old, new)
    if as_json:
        typer.echo(json.dumps(as_fields(difference)))
    else:
        print_difference(difference)
