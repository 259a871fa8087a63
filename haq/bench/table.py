"""The table of a benchmark: evaluated policies of one network, and all that its costs follow from.

It is one parquet file: a row a policy, a column for the bits of each layer's weights ("w:conv1")
and of what it reads ("a:conv1"), and one for each figure. What is the same for all policies stands
as JSON in the metadata of the file, under "haq".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.allocation.choices import permitted
from haq.allocation.costs import CostTable, tabulate
from haq.allocation.policy import Bits, Policy
from haq.allocation.sensitivities import Sensitivity
from haq.bench.policies import Drawn
from haq.errors import HaqError
from haq.extras import library
from haq.hw_profiles import load as load_target
from haq.network.layers import CallShape, Layer

KEY = b"haq"


@dataclass(frozen=True)
class Subject:
    """The network that policies are of.

    Attributes:
        model: Its name.
        layers: In execution order.
        pins: Layers that no search changes, and their bits.
        float_values: Values of the network in no layer, which stay float32.
        float_accuracy: Of the float network, on the images that policies are scored on.
        sensitivity: What bits in one place alone do, of every width on offer.
        about: What else a reader wants to know: data, images, versions, licence.
    """

    model: str
    layers: tuple[Layer, ...]
    pins: Mapping[str, Bits]
    float_values: int
    float_accuracy: float
    sensitivity: Sensitivity
    about: Mapping[str, Any]

    def costs(self, target: str | None = None, act_bits: int | None = None) -> CostTable:
        """Return what the choices cost on a target, as a search of the network has it.

        Args:
            target: Name or file of a profile; without one there are size, avg_weight_bits and bops.
            act_bits: Of all activations, or None where they are chosen too.

        Raises:
            HaqError: There is no such target, or it cannot run some layer.
        """
        hardware = load_target(target) if target else None
        pins = {name: bits.weight for name, bits in self.pins.items()}
        choices = permitted(self.layers, hardware, act_bits=act_bits, pins=pins)
        return tabulate(self.layers, choices, hardware, self.float_values)


@dataclass(frozen=True)
class Bench:
    """Evaluated policies of one network.

    Attributes:
        subject: The network.
        drawn: How each policy was drawn, and the policy.
        figures: Name to (policies,) float64, NaN where it was not measured: "divergence" in nats
            and "accuracy" as a share of every policy; others as the file's README says.
    """

    subject: Subject
    drawn: Sequence[Drawn]
    figures: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.drawn)


def write_bench(bench: Bench, path: Path) -> None:
    """Write a table; figures are float32 in the file."""
    pyarrow, parquet = _arrow(), _arrow("pyarrow.parquet")
    columns: dict[str, Any] = {
        "family": pyarrow.array([one.family for one in bench.drawn]).dictionary_encode(),
        "setting": pyarrow.array([one.setting for one in bench.drawn]).dictionary_encode(),
    }
    for layer in bench.subject.layers:
        bits = [one.policy[layer.name] for one in bench.drawn]
        columns[f"w:{layer.name}"] = np.array([b.weight for b in bits], np.uint8)
        columns[f"a:{layer.name}"] = np.array([b.act for b in bits], np.uint8)
    for name, values in bench.figures.items():
        columns[name] = pyarrow.array(values.astype(np.float32), from_pandas=True)
    table = pyarrow.table(columns)
    text = json.dumps(asdict(bench.subject))
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        table.replace_schema_metadata({KEY: text}), path, compression="zstd", compression_level=19
    )


def read_bench(path: str | Path) -> Bench:
    """Read a table.

    Raises:
        HaqError: The file is missing, or is no table of a benchmark.
    """
    pyarrow, parquet = _arrow(), _arrow("pyarrow.parquet")
    try:
        table = parquet.read_table(path)
        subject = subject_of(json.loads((table.schema.metadata or {})[KEY]))
        columns = {name: table.column(name) for name in table.column_names}
        family, setting = (columns.pop(name).to_pylist() for name in ("family", "setting"))
        policies = _policies(subject.layers, columns)
        drawn = [Drawn(*row) for row in zip(family, setting, policies, strict=True)]
        figures = {name: _floats(column) for name, column in columns.items()}
        if not {"divergence", "accuracy"} <= figures.keys():
            raise KeyError("divergence, accuracy")
    except (OSError, KeyError, TypeError, ValueError, pyarrow.ArrowException) as error:
        raise HaqError(
            f"{path} is no table of a benchmark ({error}); results/benchmarks/haq_bench.py "
            "makes one"
        ) from error
    return Bench(subject, drawn, figures)


def _policies(layers: Sequence[Layer], columns: dict[str, Any]) -> list[Policy]:
    widths = [
        (columns.pop(f"w:{layer.name}").to_pylist(), columns.pop(f"a:{layer.name}").to_pylist())
        for layer in layers
    ]
    bits = [[Bits(*pair) for pair in zip(*both, strict=True)] for both in widths]
    names = [layer.name for layer in layers]
    return [dict(zip(names, row, strict=True)) for row in zip(*bits, strict=True)]


def _floats(column: Any) -> NDArray[Any]:
    values = column.to_numpy().astype(np.float64)  # (policies,), nulls are NaN
    return np.asarray(values)


def subject_of(content: Mapping[str, Any]) -> Subject:
    """Return the network that ``dataclasses.asdict`` and JSON made of one."""
    known = content["sensitivity"]
    return Subject(
        content["model"],
        tuple(_layer(fields) for fields in content["layers"]),
        {name: Bits(*bits) for name, bits in content["pins"].items()},
        content["float_values"],
        content["float_accuracy"],
        Sensitivity(
            known["measure"],
            known["images"],
            _by_bits(known["weights"]),
            _by_bits(known["activations"]),
        ),
        content["about"],
    )


def _by_bits(table: Mapping[str, Mapping[str, float]]) -> dict[str, dict[int, float]]:
    return {name: {int(bits): value for bits, value in row.items()} for name, row in table.items()}


def _layer(fields: Mapping[str, Any]) -> Layer:
    shapes = tuple(
        CallShape(tuple(one), tuple(two), macs, calls) for one, two, macs, calls in fields["shapes"]
    )
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Layer(**{**plain, "shapes": shapes})


def _arrow(module: str = "pyarrow") -> ModuleType:
    return library(module, "data", "a table of HAQ-Bench")
