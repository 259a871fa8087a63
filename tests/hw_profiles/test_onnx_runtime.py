"""Measuring in ONNX Runtime: the clock, the kernels, and what predicts a mixed network."""

import itertools
from functools import partial

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured_parts import measured_profile
from onnx import TensorProto, helper, numpy_helper

from haq.allocation.costs import permitted, reference, tabulate, total
from haq.allocation.policy import Bits
from haq.errors import HaqError, TargetError
from haq.hw_profiles import build, document
from haq.hw_profiles.measure import kernels, onnx_runtime, timing
from haq.hw_profiles.measure.fit import Fitted, fit, shared_out, validate
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.hw_profiles.measure.timing import Sample
from haq.hw_profiles.measured import (
    CLIPPED,
    FLOATS,
    INTEGERS,
    STANDARD,
    Crossings,
    Passing,
    crossings,
    kernel,
)
from haq.hw_profiles.profile import Profile
from haq.network.layers import Layer

SETUP = Setup()
FEWEST = timing.FEWEST_ROUNDS


def chain(*quantized, rounds_output=True):
    """Return a model of 3x3 convolutions "l0", "l1", …: those quantized have integers around them.

    Args:
        quantized: For each convolution whether it is; a ReLU follows each.
        rounds_output: Whether what the last one gives is rounded too.
    """
    nodes, constants = [], []

    def add(kind, inputs, output, name=None, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], name or output, **attributes))
        return output

    def constant(name, values):
        constants.append(numpy_helper.from_array(values, name))
        return name

    def rounded(tensor, name):
        scale = constant(f"{name}.scale", np.float32(0.02))
        zero = constant(f"{name}.zero", np.uint8(0))
        codes = add("QuantizeLinear", [tensor, scale, zero], f"{name}.q")
        return add("DequantizeLinear", [codes, scale, zero], f"{name}.d")

    generator = np.random.default_rng(0)
    tensor, grid = "images", False
    for place, integer in enumerate(quantized):
        name = f"l{place}"
        if integer and not grid:
            tensor = rounded(tensor, f"{name}.input")
        values = generator.integers(-127, 128, (16, 16, 3, 3))
        if integer:
            codes = constant(f"{name}.codes", values.astype(np.int8))
            scale = constant(f"{name}.weight_scale", np.full(16, 0.001, np.float32))
            zero = constant(f"{name}.weight_zero", np.zeros(16, np.int8))
            weight = add("DequantizeLinear", [codes, scale, zero], f"{name}.w", axis=0)
        else:
            weight = constant(f"{name}.w", (values * 0.001).astype(np.float32))
        add("Conv", [tensor, weight], f"{name}.sum", name, pads=[1] * 4)
        tensor, grid = add("Relu", [f"{name}.sum"], f"{name}.relu"), False
        if integer and (rounds_output or place + 1 < len(quantized)):
            tensor, grid = rounded(tensor, f"{name}.output"), True
    add("Identity", [tensor], "logits")
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 16, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 16, 8, 8])
    graph = helper.make_graph(nodes, "chain", [images], [logits], constants)
    opset = helper.make_opsetid("", 21)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def origins(model, count):
    names = [f"l{place}" for place in range(count)]
    run = onnx_runtime.opened(model.SerializeToString(), SETUP).graph
    return kernels.Origins(model.graph, run, names)


def bits(*quantized):
    return {f"l{place}": INTEGERS if one else FLOATS for place, one in enumerate(quantized)}


# --- kernels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quantized",
    [(True, True, True), (False, False, False), (False, True, False), (True, False, True)],
)
def test_layers_run_in_the_kernels_their_bits_claim(quantized):
    """The last case is that of a float layer that ONNX Runtime would quantize by default."""
    found = origins(chain(*quantized), 3)
    kernels.check_kernels(found.kernels, bits(*quantized))
    for name, integer in zip(found.kernels, quantized, strict=True):
        assert found.kernels[name] == (["QLinearConv"] if integer else ["Conv"])


def test_a_layer_in_another_kernel_is_named():
    found = origins(chain(True, True, rounds_output=False), 2)
    with pytest.raises(
        TargetError,
        match=r"layer 'l1' at w8a8 should run in an integer kernel, but ONNX Runtime runs it in "
        r"(Fused)?Conv;",
    ):
        kernels.check_kernels(found.kernels, bits(True, True))
    assert [name for name, _ in kernels.misplaced(found.kernels, bits(True, True))] == ["l1"]


def test_a_float_layer_in_an_integer_kernel_is_named():
    found = origins(chain(True, True), 2)
    with pytest.raises(TargetError, match="layer 'l0' at fp32 should run in a float kernel, but"):
        kernels.check_kernels(found.kernels, bits(False, True))


def test_every_node_that_runs_belongs_to_a_layer():
    model = chain(False, True, False)
    found = origins(model, 3)
    times = onnx_runtime.node_times(model.SerializeToString(), SETUP, runs=2)
    assert times.keys() == found.layers.keys()
    assert set(found.layers.values()) == {"l0", "l1", "l2"}
    assert all(us >= 0 for us in times.values())


# --- sessions ----------------------------------------------------------------------------------


def test_what_is_no_model_is_refused():
    with pytest.raises(TargetError, match="ONNX Runtime cannot load the model on CPUExecution"):
        onnx_runtime.session(b"nothing", SETUP)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_names_those_that_are(provider):
    if onnx_runtime.PROVIDERS[provider] in onnxruntime.get_available_providers():
        pytest.skip(f"ONNX Runtime has {onnx_runtime.PROVIDERS[provider]} here")
    with pytest.raises(TargetError, match=f"{provider}.*finds only .*CPUExecutionProvider.* here"):
        onnx_runtime.check_provider(provider)


def test_unknown_providers_are_refused():
    with pytest.raises(HaqError, match=r"unknown provider 'cpus'; did you mean 'cpu'\?"):
        onnx_runtime.check_provider("cpus")


def test_a_gpu_is_measured_by_wall_time_after_many_warm_ups():
    setup = Setup("cuda")
    assert (setup.clock, setup.warm_ups) == ("wall time", 50)


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="ONNX Runtime has no CUDAExecutionProvider here",
)
def test_a_gpu_runs_and_waits():
    model = chain(False, False).SerializeToString()
    setup = Setup("cuda")
    timings = onnx_runtime.measure({"fp32": onnx_runtime.session(model, setup)}, setup, rounds=3)
    assert timings["fp32"].us > 0


@pytest.mark.parametrize("batch", [1, 3])
def test_networks_are_measured_for_their_batch(batch):
    setup = Setup(batch=batch)
    models = {"float": chain(False, False), "integer": chain(True, True)}
    sessions = {
        name: onnx_runtime.session(model.SerializeToString(), setup)
        for name, model in models.items()
    }
    seen = []
    timings = onnx_runtime.measure(
        sessions, setup, rounds=3, on_round=lambda done, most: seen.append((done, most))
    )
    assert timings.keys() == models.keys()
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for one in timings.values():
        assert one.samples == 3
        assert 0 < one.low <= one.us <= one.high
        assert one.us <= one.p50 <= one.p90


def test_one_thread_is_measured_by_its_own_clock():
    assert Setup(threads=1).clock == "thread CPU time"
    assert Setup(threads=2).clock == "wall time"
    assert Setup(threads=2).options["threads"] == 2


# --- the clock ---------------------------------------------------------------------------------


def ticking():
    """Return a clock on which every call takes a microsecond."""
    return partial(next, itertools.count(0, 1000))


def test_candidates_are_interleaved_and_each_is_warm():
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "abc"}
    timing.sampled(calls, ticking(), rounds=4, enough=1.0, seed=0)
    rounds = [called[start : start + 6] for start in range(0, 24, 6)]
    assert len(called) == 24
    for one in rounds:
        assert one[::2] == one[1::2]  # one call to warm up, then the one that counts
        assert sorted(one[::2]) == ["a", "b", "c"]
    assert len({tuple(one) for one in rounds}) > 1
    again, called = called, []
    timing.sampled(calls, ticking(), rounds=4, enough=1.0, seed=0)
    assert called == again


@pytest.mark.parametrize(
    "enough, seconds, rounds, expected",
    [
        (float("inf"), 1e9, 100, FEWEST),  # narrow enough as soon as it is believed
        (0.0, 1e9, 33, 33),  # never narrow enough
        (0.0, 0.0, 33, FEWEST),  # too late as soon as it is believed
        (0.0, 0.0, 3, 3),
    ],
)
def test_measuring_stops_when_it_knows_enough_or_has_no_time(enough, seconds, rounds, expected):
    seen = []
    calls = {"a": lambda: None}
    timing.sampled(calls, ticking(), rounds, enough, 0, lambda *at: seen.append(at), seconds)
    assert seen == [(done, rounds) for done in range(1, expected + 1)]


def test_the_clock_is_read_around_the_call_that_counts():
    now = iter([0, 3_000, 10_000, 15_000, 20_000, 24_000])  # ns: 3, 5 and 4 us
    timings = timing.sampled({"a": lambda: None}, lambda: next(now), 3, 1.0, seed=0)
    assert timings["a"].p50 == 4


def test_the_tenth_percentile_by_hand():
    one = timing.percentile([float(us) for us in range(100, 111)])
    assert (one.us, one.p50, one.p90, one.samples) == (101, 105, 109, 11)
    assert 100 <= one.low <= 101 <= one.high
    assert one.half_width == (one.high - one.low) / 2 / 101


@pytest.mark.parametrize(
    "quiet, expected, used",
    [(FEWEST, 5.0, FEWEST), (FEWEST - 1, 1.0, 100)],  # the others have a faster one among them
)
def test_interrupted_samples_count_only_where_there_are_too_few_others(quiet, expected, used):
    others = [Sample(1.0, True)] * (100 - quiet)
    one = timing.timing_of([Sample(5.0, False)] * quiet + others, seed=0)
    assert (one.us, one.samples) == (expected, used)
    assert one.contended == pytest.approx(1 - quiet / 100)


def test_equal_samples_have_no_interval():
    one = timing.percentile([7.0] * 20)
    assert (one.low, one.us, one.high, one.half_width) == (7, 7, 7, 0)


def test_drift_is_the_mean_of_what_was_measured_twice():
    then = {"fp32": 10, "w8a8": 40}
    assert timing.drift(then, {"fp32": 20, "w8a8": 20, "0": 7}) == 1.0  # 1/2 and 2
    assert timing.drift(then, {"fp32": 5}) == pytest.approx(2.0)
    assert timing.drift(then, {"0": 7}) == timing.drift({}, then) == 1.0


def test_a_timing_on_a_machine_half_as_fast():
    one = timing.Timing(10, 8, 12, 11, 20, 40, 0.25)
    assert one.times(2) == (20, 16, 24, 22, 40, 40, 0.25)
    assert one.times(2).half_width == one.half_width == 0.2


# --- from nodes to rows ------------------------------------------------------------------------


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=9), st.floats(0.1, 1e5))
def test_what_measuring_costs_is_taken_off_the_nodes(times, whole):
    nodes = {str(place): us for place, us in enumerate(times)}
    shares = shared_out(nodes, whole)
    assert sum(shares.values()) == pytest.approx(whole)
    assert all(us > 0 for us in shares.values())
    assert all(
        (shares[a] <= shares[b] + 1e-9 * whole)
        for a in nodes
        for b in nodes
        if nodes[a] <= nodes[b]
    )


@pytest.mark.parametrize(
    "pair, expected",
    [
        (Bits(8, 8), INTEGERS), (Bits(2, 8), INTEGERS), (Bits(8, 7), CLIPPED),
        (Bits(2, 2), CLIPPED), (Bits(32, 32), FLOATS),
    ],
)  # fmt: skip
def test_few_bits_run_in_the_kernels_of_eight(pair, expected):
    assert kernel(pair) == expected


TENSORS = [
    Passing(producer="a", consumer="b", values=100),
    Passing(producer="b", consumer="c", values=10),
    Passing(producer="a", consumer="c", values=1),
]


@pytest.mark.parametrize(
    "floats, expected",
    [("", (0, 0)), ("abc", (0, 0)), ("a", (101, 0)), ("b", (10, 100)), ("bc", (0, 101))],
)
def test_values_that_change_their_precision_are_counted(floats, expected):
    policy = {name: FLOATS if name in floats else Bits(4, 8) for name in "abc"}
    assert crossings(TENSORS, policy) == Crossings(*expected)


TRUE = Fitted(
    {
        "a": {FLOATS: 10.0, INTEGERS: 5.0, CLIPPED: 6.0},
        "b": {FLOATS: 20.0, INTEGERS: 40.0, CLIPPED: 44.0},
        "c": {FLOATS: 30.0, INTEGERS: 10.0, CLIPPED: 12.0},
    },
    to_quantized=0.05,
    to_float=0.02,
)
UNIFORM = [{name: bits for name in "abc"} for bits in (FLOATS, INTEGERS, CLIPPED)]
EVERY = [
    {"a": a, "b": b, "c": c}
    for a in (FLOATS, INTEGERS, CLIPPED)
    for b in (FLOATS, INTEGERS, CLIPPED)
    for c in (FLOATS, INTEGERS, CLIPPED)
    if len({a, b, c}) > 1
]


def latencies(policies, batch=1):
    return [(policy, TRUE.latency(TENSORS, policy, batch)) for policy in policies]


@pytest.mark.parametrize("batch", [1, 4])
def test_the_price_of_a_change_is_found_from_mixed_networks(batch):
    rows, mixed = TRUE.rows, latencies(EVERY, batch)
    fitted = fit(rows, TENSORS, latencies(UNIFORM, batch), mixed, batch)
    assert fitted.to_quantized == pytest.approx(0.05)
    assert fitted.to_float == pytest.approx(0.02)
    assert fitted.latency(TENSORS, EVERY[3], batch) == pytest.approx(mixed[3][1])


def test_rows_move_towards_the_mixed_networks_and_uniform_ones_stay():
    """The profiler gave "a" too much of the float network's time, and "c" too little."""
    wrong = {name: dict(row) for name, row in TRUE.rows.items()}
    wrong["a"][FLOATS] += 1
    wrong["c"][FLOATS] -= 1
    fitted = fit(wrong, TENSORS, latencies(UNIFORM), latencies(EVERY), 1)
    for policy, us in latencies(UNIFORM):
        assert fitted.latency(TENSORS, policy, 1) == pytest.approx(us, rel=1e-6)
    off = [abs(fitted.latency(TENSORS, p, 1) / us - 1) for p, us in latencies(EVERY)]
    assert max(off) < 0.01
    assert 10 < fitted.rows["a"][FLOATS] < 10.7
    assert 29.3 < fitted.rows["c"][FLOATS] < 30


def test_a_change_of_precision_never_pays_by_itself():
    faster = [(policy, us * 0.8) for policy, us in latencies(EVERY)]
    fitted = fit(TRUE.rows, TENSORS, latencies(UNIFORM), faster, 1)
    assert fitted.to_quantized == fitted.to_float == 0


def test_validation_by_hand():
    found = validate([11.0, 19.0, 30.0], [10.0, 20.0, 30.0])
    assert (found.policies, found.rank_correlation) == (3, 1)
    assert found.mean_error == pytest.approx(0.05)
    assert found.worst_error == pytest.approx(0.1)


# --- the target --------------------------------------------------------------------------------

A = Layer("a", "conv", 1, 1, macs=1, weights=9, reads_input=True)
B = Layer("b", "conv", 1, 1, macs=1, weights=9)
EVERY_PAIR = [Bits(weight, act) for weight in range(2, 9) for act in range(2, 9)]


def test_choices_are_those_whose_kernels_were_measured():
    target = build(measured_profile())
    assert FLOATS in target.choices(A)
    assert set(target.choices(B)) == {FLOATS, *EVERY_PAIR} - {Bits(8, 8)}
    assert {name: len(some) for name, some in permitted([A, B], target).items()} == {
        "a": 7,  # its input has 8 bits
        "b": 49,
    }


def test_no_pair_that_saturates_on_some_x86_cpu_is_offered():
    for options in ({}, {"runs_on": "any"}, {"provider": "CPUExecutionProvider"}):
        target = build(measured_profile(**options))
        for layer in (A, B):
            integers = set(target.choices(layer)) - {FLOATS}
            assert max(sum(pair) for pair in integers) == 15
            # The sum of two products that such a CPU adds in 16 bits.
            assert all(2 * (2**a - 1) * (2 ** (w - 1) - 1) < 2**15 for w, a in integers)
        assert Bits(8, 8) not in target.pairs
        with pytest.raises(TargetError, match="cannot run layer 'b' at w8a8; it can at w2..8 a2.."):
            target.cost(B, Bits(8, 8))


@pytest.mark.parametrize("options", [{"runs_on": "vnni"}, {"provider": "CUDAExecutionProvider"}])
def test_where_kernels_add_in_32_bits_every_pair_is_offered(options):
    target = build(measured_profile(**options))
    assert set(target.choices(B)) == {FLOATS, *EVERY_PAIR}
    assert Bits(8, 8) in target.pairs
    assert target.cost(B, Bits(8, 8)) == {"latency": 5}


def test_depthwise_layers_never_saturate():
    content = measured_profile().model_dump(mode="json", exclude_defaults=True)
    shape = {"kind": "depthwise", "c_in": 4, "c_out": 4, "groups": 4}
    for row in content["table"]["rows"]:
        if row["layer"] == "b":
            row["shape"] = shape
    target = build(Profile.model_validate(content))
    layer = Layer("b", "depthwise", 4, 4, groups=4)
    assert set(target.choices(layer)) == {FLOATS, *EVERY_PAIR}
    assert Bits(8, 8) in target.pairs


@pytest.mark.parametrize(
    "pair, expected, method",
    [
        (Bits(7, 8), 5, "rounded up"), (Bits(3, 8), 5, "rounded up"), (Bits(8, 7), 6, "exact"),
        (Bits(4, 4), 6, "rounded up"), (Bits(32, 32), 12, "exact"),
    ],
)  # fmt: skip
def test_a_cost_is_that_of_the_kernel(pair, expected, method):
    answer = build(measured_profile()).how(B, pair)["latency"]
    assert answer == (expected, method, "measured")


def test_a_table_of_a_measured_target_by_hand():
    target = build(measured_profile())
    table = tabulate([A, B], permitted([A, B], target), target)
    assert total(table, {"a": FLOATS, "b": Bits(2, 8)}, "latency") == 10 + 5 + 0.5 * 10 * 2
    assert total(table, {"a": Bits(7, 8), "b": FLOATS}, "latency") == 3 + 12 + 0.25 * 10 * 2
    assert reference([A, B], target, "latency", FLOATS) == 22
    assert reference([A, B], target, "latency", STANDARD) == 8


def test_a_measured_target_knows_its_own_layers_and_batch_only():
    with pytest.raises(TargetError, match="mine has no row for layer 'd'"):
        build(measured_profile()).cost(Layer("d", "conv", 1, 1), INTEGERS)
    with pytest.raises(TargetError, match="mine is for a batch of 2; it knows nothing of 1"):
        build(measured_profile(), batch=1)


def test_a_measured_profile_survives_its_file(tmp_path):
    profile = measured_profile()
    (tmp_path / "mine.json").write_text(document.write_json(profile))
    assert document.read(tmp_path / "mine.json") == profile
