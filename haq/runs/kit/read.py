"""Read what was measured with a kit: check it, fit it, check the fit, make a profile of it."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.optimize import nnls

from haq.allocation.policy import Bits, Policy
from haq.errors import HaqError
from haq.hw_profiles.measure import fit
from haq.hw_profiles.measured import OwnDevice, Passing, Validation, crossings
from haq.hw_profiles.profile import FORMAT as PROFILE_FORMAT
from haq.hw_profiles.profile import Profile
from haq.hw_profiles.rows import Cost, Row, Shape, Table
from haq.hw_profiles.schema import Batch, Quantity, Runtime
from haq.runs.kit.make import FORMAT, RUNNER, Contents, Part

DRIFT = 0.1
"""How much slower or faster the reference may be in the end than in the beginning."""

LATENCIES = (1e-6, 1e10)
"""Microseconds between which a latency lies; what is not there was not measured."""

MEASURED = "measured.jsonl"

_LEAST = 0.05  # share of a layer's own time that is left of it at least

_Rows = Sequence[Mapping[str, Any]]

Cell = tuple[int, Bits]
"""Number of a shape, and its bits."""


class Fitted(NamedTuple):
    """What a device takes inside a network.

    Attributes:
        cells: A shape at its bits to microseconds.
        to_quantized: Microseconds of a value that passes from a float layer to a quantized one.
        to_float: And the other way.
        validation: On mixed policies that the fit had not seen.
        seen: How many mixed networks were fitted to.
    """

    cells: Mapping[Cell, float]
    to_quantized: float
    to_float: float
    validation: Validation
    seen: int


class Read(NamedTuple):
    """A profile from a kit, and how far its predictions are off.

    Attributes:
        profile: For ``--target``.
        validation: On mixed policies that the fit had not seen.
        drift: The reference in the end over the reference in the beginning, less 1.
        rounds: How often every file was measured.
        uniform: Bits of all layers to microseconds of that network, the most bits first.
    """

    profile: Profile
    validation: Validation
    drift: float
    rounds: int
    uniform: Mapping[Bits, float]


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
    fitted = _fitted(contents, times)
    rounds = len({row["round"] for row in rows})
    profile = _profile(name, contents, device, fitted, rounds)
    return Read(profile, fitted.validation, drift, rounds, _uniform(contents, times))


def _uniform(contents: Contents, times: Mapping[str, float]) -> dict[Bits, float]:
    # What reads the network's input has 8 bits of activations, whatever the others have.
    networks = {
        Bits(*min(contents.files[name]["policy"].values())): us
        for name, us in times.items() if name.startswith("uniform")
    }  # fmt: skip
    return dict(sorted(networks.items(), reverse=True))


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
        tensors = [Passing.model_validate(tensor) for tensor in record.pop("tensors")]
        return Contents(shapes=shapes, layers=layers, tensors=tensors, **record)
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
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what has no end was torn by a kill
    except OSError as error:
        raise HaqError(f"{path} cannot be read ({error.strerror})") from error
    records = [_record(path, number, line) for number, line in enumerate(lines, 1)]
    if not records or not isinstance(records[0].get("device"), dict):
        raise HaqError(f"{path}, line 1: it must say which device was measured")
    rows = [row | {"line": number} for number, row in enumerate(records[1:], 2)]
    for row in rows:
        _check_row(f"{path}, line {row['line']}", row, contents)
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
    if "device" in row:
        raise HaqError(
            f"{where}: figures of a second device begin here; keep those of one device in the file"
        )
    if not isinstance(file, str) or file not in contents.files:
        raise HaqError(f"{where}: the kit has no file {file!r}; the rows are another kit's")
    least, most = LATENCIES
    if not isinstance(us, int | float) or us is True or not least <= us <= most:
        raise HaqError(
            f"{where}: {file} takes {us!r} us, which is no latency; take the line away, mend the "
            f"command, and run {RUNNER} again"
        )
    if not all(isinstance(row.get(key), int) for key in ("round", "place")):
        raise HaqError(f"{where}: it needs round and place, whole numbers, as {RUNNER} writes them")


def _median(values: Any) -> float:
    return float(median(values))


def _check_varied(folder: Path, contents: Contents, times: Mapping[str, float]) -> None:
    """Refuse a device that takes the same for all layers, or for all networks.

    Raises:
        HaqError: It does.
    """
    alone = {times[name] for name, about in contents.files.items() if "shape" in about}
    whole = {times[name] for name, about in contents.files.items() if "policy" in about}
    layers = len(contents.shapes) > 1 and len(alone) == 1
    if layers or len(whole) == 1:
        what = "layer" if layers else "network"
        us = (alone if layers else whole).pop()
        raise HaqError(
            f"{folder / MEASURED}: every {what} takes {us:g} us, so it is not the {what} that was "
            "measured; mend the command, take the file away and measure again"
        )


def _drift(folder: Path, contents: Contents, rows: Sequence[Mapping[str, Any]]) -> float:
    """Return how much slower the reference was in the end: of all rounds, or of each one.

    A device that gets hot in every round, and cools down before the next one, shows it in each.

    Raises:
        HaqError: By more than ``DRIFT``, or faster.
    """
    ordered = sorted(
        (row for row in rows if row["file"] == contents.reference),
        key=lambda row: (row["round"], row["place"]),
    )
    few = max(1, len(ordered) // 4)
    drift = _check_drift(folder, contents, ordered[:few], ordered[-few:], "in the beginning")
    rounds = [list(some) for _, some in groupby(ordered, key=itemgetter("round"))]
    whole = [some for some in rounds if len(some) > 1]
    if whole:
        ends = [some[0] for some in whole], [some[-1] for some in whole]
        _check_drift(folder, contents, *ends, "in the beginning of a round")
    return drift


def _check_drift(folder: Path, contents: Contents, early: _Rows, late: _Rows, when: str) -> float:
    first, last = (_median(row["us"] for row in some) for some in (early, late))
    drift = last / first - 1
    if not abs(drift) <= DRIFT:
        lines = f"lines {early[0]['line']} and {late[-1]['line']}"
        raise HaqError(
            f"{folder / MEASURED}, {lines}: {contents.reference} took {first:,.1f} us {when} and "
            f"{last:,.1f} in the end ({drift:+.0%}): the device changed its speed, as one that "
            f"gets hot does; fix its clock or cool it, take {MEASURED} away and measure again"
        )
    return drift


def _fitted(contents: Contents, times: Mapping[str, float]) -> Fitted:
    """Return what each shape costs at its bits inside a network, and how far that is off.

    A layer alone has its inputs and outputs converted where it is quantized, and starts a network
    of its own. What that takes is chosen so that the sums explain the networks; then the costs are
    moved towards what is left, as in ``haq.hw_profiles.measure.fit``.
    """
    files = contents.files
    alone = {(about["shape"], Bits(*about["bits"])): times[name]
             for name, about in files.items() if "shape" in about}  # fmt: skip
    policies = {
        name: {layer: Bits(*bits) for layer, bits in about["policy"].items()}
        for name, about in files.items() if "policy" in about
    }  # fmt: skip
    mixed = [name for name in policies if name.startswith("mixed")]
    seen, unseen = [name for name in policies if name not in mixed[1::2]], mixed[1::2]
    uses = {name: _uses(contents, policy, list(alone)) for name, policy in policies.items()}
    passed = {name: _passed(contents, policy) for name, policy in policies.items()}
    known = np.array([times[name] for name in seen])
    fitting = np.array([uses[name] for name in seen]), np.array([passed[name] for name in seen])
    before, prices = _inside(contents, alone, *fitting, known)
    trusted = np.full(len(seen), fit.CLOCK_ERROR)
    after = fit.moved(before, fitting[0], known, trusted, fitting[1] @ prices)
    predicted = [float(uses[name] @ after + passed[name] @ prices) for name in unseen]
    validation = fit.validate(predicted, [times[name] for name in unseen])
    cells = dict(zip(alone, map(float, after), strict=True))
    into, back = map(float, prices)
    return Fitted(cells, into, back, validation, len(mixed) - len(unseen))


def _uses(contents: Contents, policy: Policy, cells: Sequence[Cell]) -> NDArray[np.float64]:
    """Return how often a network computes each shape at its bits."""
    counts = dict.fromkeys(cells, 0.0)
    for layer, bits in policy.items():
        for part in contents.layers[layer]:
            counts[part.shape, bits] += part.calls
    return np.array([counts[cell] for cell in cells])


def _passed(contents: Contents, policy: Policy) -> NDArray[np.float64]:
    """Return how many values of a batch become quantized, and float, between layers."""
    return contents.batch * np.array(crossings(contents.tensors, policy), np.float64)


def _values(shape: Shape) -> int:
    """Return how many numbers go into a layer and come out of it."""
    return shape.c_in * math.prod(shape.in_size) + shape.c_out * math.prod(shape.out_size)


def _inside(
    contents: Contents,
    alone: Mapping[Cell, float],
    uses: NDArray[np.float64],
    passed: NDArray[np.float64],
    latencies: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the costs of layers inside a network, and of a value that changes its precision.

    A layer inside a network is what it is alone, less its start and its edges. The price of a value
    at the edge is tried on a grid; the scale of the layers, what each of them takes beside, and the
    prices of a change of precision are the non-negative least squares of the relative errors.
    """
    whole = np.array(list(alone.values()))
    # Float layers have no edges that are converted.
    values = np.array([0 if bits.floats else _values(contents.shapes[at]) for at, bits in alone])
    best, inside, prices = math.inf, whole, np.zeros(2)
    dearest = float((whole[values > 0] / values[values > 0]).min())
    for price in np.linspace(0, dearest, 21):
        left = np.maximum(whole - price * values, _LEAST * whole)
        columns = np.column_stack([uses @ left, uses.sum(1), passed]) / latencies[:, None]
        (scale, start, *changes), error = nnls(columns, np.ones(len(latencies)))
        if error < best - 1e-9:
            best, inside, prices = error, scale * left + start, np.array(changes)
    return inside, prices


def _model(contents: Contents, fitted: Fitted) -> OwnDevice | None:
    """Return what rows cannot say; nothing where no layer may be float."""
    if not contents.tensors:
        return None
    return OwnDevice(
        type="own-device",
        to_quantized=fitted.to_quantized,
        to_float=fitted.to_float,
        tensors=tuple(contents.tensors),
        fitted_on=fitted.seen,
        validation=fitted.validation,
    )


def _profile(
    name: str,
    contents: Contents,
    device: Mapping[str, Any],
    fitted: Fitted,
    rounds: int,
) -> Profile:
    cells, validation = fitted.cells, fitted.validation
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
        Row(shape=contents.shapes[shape], weight=bits.weight, act=bits.act,
            cost={"latency": Cost(value=us, n=rounds)})
        for (shape, bits), us in cells.items()
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
        model=_model(contents, fitted),
        table=Table(rows=rows),
    )  # fmt: skip
