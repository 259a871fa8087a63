"""Layers, and profiles with a few rows, small enough to count with."""

import json
from typing import Any

from haq.allocation.policy import Bits
from haq.hw_profiles import (
    CostAnswer,
    ProfileTarget,
    build,
)
from haq.hw_profiles.document import parse
from haq.hw_profiles.profile import Profile
from haq.hw_profiles.rows import shape_of
from haq.network.layers import Layer

CONV = Layer(
    "conv1", "conv", c_in=3, c_out=16, kernel=(3, 3), padding=(1, 1), in_size=(8, 8),
    out_size=(8, 8), weights=432, macs=27648, reads_input=True,
)  # fmt: skip
DEPTHWISE = Layer(
    "dw", "depthwise", c_in=16, c_out=16, kernel=(3, 3), stride=(2, 2), padding=(1, 1), groups=16,
    in_size=(8, 8), out_size=(4, 4), weights=144, macs=2304,
)  # fmt: skip
POINTWISE = Layer(
    "pw", "pointwise", c_in=16, c_out=24, in_size=(4, 4), out_size=(4, 4), weights=384, macs=6144
)
FC = Layer("fc", "linear", c_in=24, c_out=10, weights=240, macs=240)
LAYERS = (CONV, DEPTHWISE, POINTWISE, FC)

Content = dict[str, Any]


def row(layer: Layer | str, weight: int, act: int, latency: float, **more: Any) -> Content:
    about: Content
    if isinstance(layer, str):
        about = {"layer": layer}
    else:
        about = {"shape": shape_of(layer).model_dump(mode="json", exclude_defaults=True)}
    return {**about, "weight": weight, "act": act, "cost": {"latency": latency}, **more}


def content(*rows: Content, **more: Any) -> Content:
    source = "three runs on the bench"
    return {
        "format": "haq-profile/1",
        "name": "board",
        "title": "A board",
        "device": "board",
        "runtime": {"name": "bare metal"},
        "quantities": {"latency": {"unit": "us", "provenance": "measured", "source": source}},
        "batch": {"reference": 1, "rule": "none"},
        **({"table": {"rows": list(rows)}} if rows else {}),
        **more,
    }


def profile(*rows: Content, **more: Any) -> Profile:
    return parse(json.dumps(content(*rows, **more)), "profile board.json")


def target(*rows: Content, images: int | None = None, **more: Any) -> ProfileTarget:
    return build(profile(*rows, **more), images)


def latency(target: ProfileTarget, layer: Layer, weight: int, act: int) -> CostAnswer:
    return target.how(layer, Bits(weight, act))["latency"]
