"""The rules of tables against a published one: MobileNetV2 on bismo-cloud, 53 x 8 x 8 costs."""

import json
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from profile_parts import (
    Content,
    content,
    row,
)
from scipy.stats import spearmanr

from haq.allocation.policy import Bits
from haq.hw_profiles import (
    build,
    load,
)
from haq.hw_profiles.document import parse
from haq.hw_profiles.rows import shape_of
from haq.network.layers import Layer

# The rules against a published table: all 53 x 8 x 8 costs of MobileNetV2 on bismo-cloud, which the
# formula equals (tests/test_bitserial.py).


def mobilenet_v2() -> list[Layer]:
    def conv(c_in: int, c_out: int, size: int, k: int = 1, stride: int = 1) -> Layer:
        kind = "pointwise" if k == 1 else "depthwise" if c_in == c_out else "conv"
        after = size // stride
        return Layer(
            "", kind, c_in, c_out, (k, k), (stride, stride), (k // 2, k // 2),
            c_in if kind == "depthwise" else 1, (size, size), (after, after),
        )  # fmt: skip

    layers, c_in, size = [conv(3, 32, 224, 3, 2)], 32, 112
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    for expansion, c_out, blocks, first in [*stages, (6, 160, 3, 2), (6, 320, 1, 1)]:
        for stride in [first, *[1] * (blocks - 1)]:
            wide = c_in * expansion
            layers += [conv(c_in, wide, size)] if expansion > 1 else []
            layers.append(conv(wide, wide, size, 3, stride))
            size //= stride
            layers.append(conv(wide, c_out, size))
            c_in = c_out
    return [*layers, conv(320, 1280, 7), Layer("", "linear", 1280, 1000)]


NETWORK = mobilenet_v2()
SHAPES = list(dict.fromkeys(NETWORK))
CLOUD = load("bismo-cloud")


def published(layers: Sequence[Layer], widths: Sequence[int], **more: Any) -> Content:
    rows = [
        row(layer, weight, act, CLOUD.cost(layer, Bits(weight, act))["latency"])
        for layer in layers
        for weight, act in product(widths, widths)
    ]
    about = {"unit": "cycles", "provenance": "published", "source": "the table of MobileNetV2"}
    return content(
        table={"rows": rows, **more},
        quantities={"latency": about},
        batch={"reference": 16, "rule": "linear"},
    )


def test_three_widths_tell_the_others_within_one_percent() -> None:
    three = published(SHAPES, (2, 4, 8)) | {"bits": {"between": "interpolate"}}
    board = build(parse(json.dumps(three), "it"))
    pairs = [Bits(weight, act) for weight, act in product(range(2, 9), range(2, 9))]
    assert len(NETWORK) == 53 and len(SHAPES) == 31
    for layer in SHAPES:
        assert board.choices(layer) == tuple(pairs)
    told = [[board.cost(layer, bits)["latency"] for bits in pairs] for layer in NETWORK]
    true = [[CLOUD.cost(layer, bits)["latency"] for bits in pairs] for layer in NETWORK]
    error = np.abs(np.array(told) / np.array(true) - 1)
    assert error.mean() == pytest.approx(0.0059, abs=5e-5) and error.max() < 0.132
    for costs in told:
        cost = dict(zip(pairs, costs, strict=True))
        for bits in pairs:
            below = Bits(*(max(w for w in (2, 4, 8) if w <= width) for width in bits))
            assert cost[bits] >= cost[below]


def test_other_shapes_tell_one_within_three_percent() -> None:
    sizes = {"rows": 16, "columns": 16, "word_bits": 256, "port_bits": 256}
    tiles = {**sizes, "depthwise_channels": 16}
    whole = parse(json.dumps(published(SHAPES, range(1, 9), nearest=tiles)), "it")
    assert whole.table is not None
    told, true = [], []
    for layer in SHAPES[1:-1]:  # the first and the last are the only ones of their kind
        others = tuple(r for r in whole.table.rows if r.shape != shape_of(layer))
        board = build(
            whole.model_copy(update={"table": whole.table.model_copy(update={"rows": others})})
        )
        for bits in CLOUD.choices(layer)[::3]:
            answer = board.how(layer, bits)["latency"]
            assert answer.method == "shape" and answer.provenance == "inferred"
            told.append(answer.value)
            true.append(CLOUD.cost(layer, bits)["latency"])
    error = np.abs(np.array(told) / np.array(true) - 1)
    assert error.mean() < 0.03 and error.max() < 0.5
    assert spearmanr(told, true).statistic > 0.999
