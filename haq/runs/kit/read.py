"""Read what was measured with a kit: check it, fit it, check the fit, make a profile of it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.optimize import nnls

from haq.errors import HaqError
from haq.hw_profiles.measure import fit
from haq.hw_profiles.measured import Validation
from haq.hw_profiles.profile import FORMAT as PROFILE_FORMAT
from haq.hw_profiles.profile import Profile
from haq.hw_profiles.rows import Cost, Row, Shape, Table
from haq.hw_profiles.schema import Batch, Quantity, Runtime
from haq.runs.kit.make import ACT_BITS, FORMAT, RUNNER, Contents, Part

DRIFT = 0.1
"""How much slower or faster the reference may be in the end than in the beginning."""

MEASURED = "measured.jsonl"

_LEAST = 0.05  # share of a layer's own time that is left of it at least

Cell = tuple[int, int]
"""Number of a shape, and bits of its weights."""


class Read(NamedTuple):
    """A profile from a kit, and how far its predictions are off.

    Attributes:
        profile: For ``--target``.
        validation: On mixed policies that the fit had not seen.
        drift: The reference in the end over the reference in the beginning, less 1.
        rounds: How often every file was measured.
        uniform: Bits of all weights to microseconds of that network, the most bits first.
    """

    profile: Profile
    validation: Validation
    drift: float
    rounds: int
    uniform: Mapping[int, float]


def read_kit(folder: Path, name: str) -> Read:
    """Return the profile of the device on which a kit was measured.

    Args:
        folder: The kit, with the device's ``measured.jsonl`` in it.
        name: Of the profile.

    Raises:
        HaqError: Something was not measured yet, is no latency, or the device changed its speed.
    """
    contents = contents_of(folder)
    device, rows = _rows(folder, contents)
    times = {file: _median(row["us"] for row in rows if row["file"] == file)
             for file in contents.files}  # fmt: skip
    _check_varied(folder, contents, times)
    drift = _drift(folder, contents, rows)
    cells, validation = _fitted(contents, times)
    rounds = len({row["round"] for row in rows})
    profile = _profile(name, contents, device, cells, validation, rounds)
    return Read(profile, validation, drift, rounds, _uniform(contents, times))


def _uniform(contents: Contents, times: Mapping[str, float]) -> dict[int, float]:
    files = [name for name in contents.files if name.startswith("uniform")]
    widths = {max(contents.files[name]["policy"].values()): times[name] for name in files}
    return dict(sorted(widths.items(), reverse=True))


def contents_of(folder: Path) -> Contents:
    """Return what a kit is about.

    Raises:
        HaqError: There is no kit, or its ``kit.json`` is damaged.
    """
    path = folder / "kit.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("format") != FORMAT:
            raise HaqError(f"{path} is not of {FORMAT}; make the kit again with haq kit make")
        shapes = [Shape.model_validate(shape) for shape in record.pop("shapes")]
        layers = {
            layer: [Part(**part) for part in parts] for layer, parts in record.pop("layers").items()
        }
        return Contents(shapes=shapes, layers=layers, **record)
    except OSError as error:
        raise HaqError(f"{folder} is no kit: {path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise HaqError(f"{path} is damaged; make the kit again with haq kit make") from error


def _rows(folder: Path, contents: Contents) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    """Return the device and all rows, of which there is one for every file.

    Raises:
        HaqError: A row is no latency, or files were not measured.
    """
    path = folder / MEASURED
    if not path.exists():
        raise HaqError(
            f"{path} is not there: run {RUNNER} of the kit on the device, and put its {MEASURED} "
            "beside kit.json"
        )
    lines = path.read_bytes().split(b"\n")[:-1]  # what has no end was torn by a kill
    records = [_record(path, number, line) for number, line in enumerate(lines, 1)]
    if not records or "device" not in records[0]:
        raise HaqError(f"{path}, line 1: it must say which device was measured")
    rows = records[1:]
    for number, row in enumerate(rows, 2):
        _check_row(f"{path}, line {number}", row, contents)
    missing = [name for name in contents.files if name not in {row["file"] for row in rows}]
    if missing:
        raise HaqError(
            f"{path}: {len(missing)} of {len(contents.files)} files were not measured "
            f"({', '.join(missing)}); run {RUNNER} again, it goes on where it was"
        )
    return records[0]["device"], rows


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise HaqError(f"{path}, line {number}: not a JSON object; take the line away and measure "
                       "again")  # fmt: skip
    return record


def _check_row(where: str, row: Mapping[str, Any], contents: Contents) -> None:
    file, us = row.get("file"), row.get("us")
    if file not in contents.files:
        raise HaqError(f"{where}: the kit has no file {file!r}; the rows are another kit's")
    if not isinstance(us, int | float) or us is True or not math.isfinite(us) or us <= 0:
        raise HaqError(
            f"{where}: {file} takes {us!r} us, which is no latency; take the line away, mend the "
            f"command, and run {RUNNER} again"
        )
    if not all(isinstance(row.get(key), int) for key in ("round", "place")):
        raise HaqError(f"{where}: it needs round and place, whole numbers, as {RUNNER} writes them")


def _median(values: Any) -> float:
    return float(median(values))


def _check_varied(folder: Path, contents: Contents, times: Mapping[str, float]) -> None:
    alone = {times[name] for name, about in contents.files.items() if "shape" in about}
    if len(contents.shapes) > 1 and len(alone) == 1:
        raise HaqError(
            f"{folder / MEASURED}: every layer takes {alone.pop():g} us, so it is not the layer "
            "that was measured; mend the command, take the file away and measure again"
        )


def _drift(folder: Path, contents: Contents, rows: Sequence[Mapping[str, Any]]) -> float:
    """Return how much slower the reference was in the end.

    Raises:
        HaqError: By more than ``DRIFT``, or faster.
    """
    ordered = sorted(
        (row for row in rows if row["file"] == contents.reference),
        key=lambda row: (row["round"], row["place"]),
    )
    few = max(1, len(ordered) // 4)
    first, last = (_median(row["us"] for row in some) for some in (ordered[:few], ordered[-few:]))
    drift = last / first - 1
    if abs(drift) > DRIFT:
        raise HaqError(
            f"{folder / MEASURED}: {contents.reference} took {first:,.1f} us in the beginning and "
            f"{last:,.1f} in the end ({drift:+.0%}): the device changed its speed, as one that "
            f"gets hot does; fix its clock or cool it, take {MEASURED} away and measure again"
        )
    return drift


def _fitted(contents: Contents, times: Mapping[str, float]) -> tuple[dict[Cell, float], Validation]:
    """Return what each shape costs at each width inside a network, and how far that is off.

    A layer alone has its inputs and outputs converted, and starts a network of its own. What that
    takes is chosen so that the sums explain the networks; then the costs are moved towards what is
    left, as in ``haq.hw_profiles.measure.fit``.
    """
    cells = [
        (about["shape"], about["weight"]) for about in contents.files.values() if "shape" in about
    ]
    alone = np.array([times[f"layer-{shape:02}-w{weight}.onnx"] for shape, weight in cells])
    files = contents.files.items()
    networks = {name: about["policy"] for name, about in files if "policy" in about}
    mixed = [name for name in networks if name.startswith("mixed")]
    uniform = [name for name in networks if name not in mixed]
    seen, unseen = [*uniform, *mixed[::2]], mixed[1::2]
    uses = {name: _uses(contents, policy, cells) for name, policy in networks.items()}
    values = np.array([_values(contents.shapes[shape]) for shape, _ in cells], np.float64)
    known = np.array([times[name] for name in seen])
    before = _inside(alone, values, np.array([uses[name] for name in seen]), known)
    after = fit.moved(before, np.array([uses[name] for name in seen]), known,
                      np.full(len(seen), fit.CLOCK_ERROR))  # fmt: skip
    predicted = [float(uses[name] @ after) for name in unseen]
    validation = fit.validate(predicted, [times[name] for name in unseen])
    return dict(zip(cells, map(float, after), strict=True)), validation


def _uses(
    contents: Contents, policy: Mapping[str, int], cells: Sequence[Cell]
) -> NDArray[np.float64]:
    """Return how often a network computes each shape at each width."""
    counts = dict.fromkeys(cells, 0.0)
    for layer, weight in policy.items():
        for part in contents.layers[layer]:
            counts[part.shape, weight] += part.calls
    return np.array([counts[cell] for cell in cells])


def _values(shape: Shape) -> int:
    """Return how many numbers go into a layer and come out of it."""
    return shape.c_in * math.prod(shape.in_size) + shape.c_out * math.prod(shape.out_size)


def _inside(
    alone: NDArray[np.float64],
    values: NDArray[np.float64],
    uses: NDArray[np.float64],
    latencies: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the costs of layers inside a network: what is alone, less its start and its edges.

    The price of a value at the edge is tried on a grid; the scale of the layers and what each of
    them takes beside are the non-negative least squares of the relative errors.
    """
    best, inside = math.inf, alone
    dearest = float((alone / values).min())
    for price in np.linspace(0, dearest, 21):
        left = np.maximum(alone - price * values, _LEAST * alone)
        columns = np.stack([uses @ left, uses.sum(1)], 1) / latencies[:, None]
        (scale, start), error = nnls(columns, np.ones(len(latencies)))
        if error < best - 1e-9:
            best, inside = error, scale * left + start
    return inside


def _profile(
    name: str,
    contents: Contents,
    device: Mapping[str, Any],
    cells: Mapping[Cell, float],
    validation: Validation,
    rounds: int,
) -> Profile:
    threads = device.get("threads") or 1
    what = device.get("command") or f"ONNX Runtime {device.get('onnxruntime')}"
    options = {k: v for k, v in device.items() if isinstance(v, str | int | float | bool)}
    source = (
        f"haq kit: {len(cells)} files of single layers and {len(contents.files) - len(cells)} "
        f"networks of {contents.model}, {rounds} rounds; {validation.policies} mixed policies that "
        f"the fit had not seen: mean error {validation.mean_error:.1%}, worst "
        f"{validation.worst_error:.1%}, rank correlation {validation.rank_correlation:.3f}"
    )
    rows = tuple(
        Row(shape=contents.shapes[shape], weight=weight, act=ACT_BITS,
            cost={"latency": Cost(value=us, n=rounds)})
        for (shape, weight), us in cells.items()
    )  # fmt: skip
    return Profile(
        format=PROFILE_FORMAT,
        name=name,
        title=f"{contents.model} by {what} on {device.get('cpu')}, threads: {threads}",
        device=str(device.get("cpu") or device.get("machine") or "unknown device"),
        runtime=Runtime(
            name="ONNX Runtime" if "onnxruntime" in device else "a command",
            version=device.get("onnxruntime"), options=options,
        ),
        quantities={
            "latency": Quantity(
                unit="us", provenance="measured", source=source, error=validation.worst_error
            )
        },
        batch=Batch(reference=contents.batch, rule="none"),
        table=Table(rows=rows),
    )  # fmt: skip
