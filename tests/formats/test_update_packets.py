"""Packets: what comes back, how large they are, and for whom. Checks C-D3 and C-D5 to C-D10."""

import json

import numpy as np
import pytest
import torch
import update_files as files
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import haq
from haq.allocation.policy import Bits
from haq.errors import UpdateError
from haq.formats import checkpoint
from haq.formats.update import entropies, family, manifest, packet, sections
from haq.formats.update.difference import compared
from haq.formats.update.network import floats, parse
from haq.formats.update.packet import Sent
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize

BIG = {"one": (32, 16, 3, 3), "two": (32, 32, 3, 3), "fc": (50, 32)}


def sent(new, base=None, bits=None):
    """Return the packet of the bytes of a file."""
    return packet.write([Sent("new", parse(new), base and parse(base))], bits)


def received(data, base=None, only=None):
    """Return the bytes of the file in a packet."""
    return packet.read(data, base and parse(base), only).file()


def modes(data):
    return manifest.read(data).members[0].modes


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_checkpoint_comes_back_byte_for_byte(bits):
    new = files.quantized(files.weights(), bits)
    data = sent(new)
    assert received(data) == new


@pytest.mark.parametrize("old_bits, new_bits", [(4, 4), (8, 3), (2, 6), (6, 5)])
def test_a_difference_between_policies_is_exact(old_bits, new_bits):
    known = files.weights(shapes=BIG)
    old = files.quantized(known, old_bits)
    new = files.quantized(files.moved(known, 0.02), {"one": new_bits, "two": 5, "fc": 8})
    data = sent(new, old)
    assert received(data, old) == new
    assert len(data) < len(sent(new))


EDGES = {
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.float32(3.5),
    "one": np.ones(1, np.int64),
    "flat": np.zeros(1000, np.float32),
    "row": np.arange(40, dtype=np.float16),
    "bytes": np.arange(256, dtype=np.uint8),
    "counts": np.array([[-5, 2**62], [7, -(2**63)]]),
    "nan": np.array([np.nan, np.inf, -0.0], np.float32),
    "deep": np.zeros((2, 1, 2, 1, 3, 2), np.float32),
}


def test_tensors_of_all_kinds_come_back():
    new = files.safetensors(EDGES, {"note": "é"})
    assert received(sent(new)) == new
    changed = {name: values[::-1] if np.ndim(values) else values for name, values in EDGES.items()}
    old = files.safetensors(changed)
    data = sent(new, old)
    assert received(data, old) == new
    assert set(modes(data)) <= set("sdv")


def test_codes_of_one_value_and_tensors_of_one_dimension_come_back():
    codes = {"same": np.full((3, 4, 1, 1), 2), "flat": np.array([1, -1, 0, 1, 1])}
    new = files.checkpoint(codes, {"same": 3, "flat": 2}, {"same": [0.5], "flat": [0.1]})
    assert received(sent(new)) == new
    other = {"same": codes["same"] - 1, "flat": codes["flat"][::-1]}
    old = files.checkpoint(other, {"same": 4, "flat": 2}, {"same": [0.25], "flat": [0.1]})
    assert received(sent(new, old), old) == new


def test_scales_of_groups_predict_too():
    known = files.weights(shapes={"fc": (16, 64)})
    steps = {"fc": np.linspace(0.1, 0.2, 16 * 4).astype(np.float32)}
    along = np.repeat(steps["fc"], 16).reshape(16, 64)
    codes = [
        {"fc": np.clip(np.rint(w["fc"] / along), -7, 7).astype(int)}
        for w in (known, files.moved(known, 0.001))
    ]
    old, new = (files.checkpoint(z, {"fc": 4}, steps) for z in codes)
    data = sent(new, old)
    assert received(data, old) == new
    assert len(data) < len(sent(new)) - 150


def test_an_unchanged_network_takes_a_header():
    new = files.quantized(files.weights(shapes=BIG), 4)
    data = sent(new, new)
    assert set(modes(data)) == {"s"}
    assert len(data) < 400
    assert received(data, new) == new


def test_an_unchanged_layer_takes_at_most_8_bytes():
    lengths = []
    for more in (0, 10):
        extra = {f"more{i}": (24, 24, 3, 3) for i in range(more)}
        known = files.weights(shapes={"one": BIG["one"], **extra})
        near = {**known, "one": files.moved(known, 0.01)["one"]}
        data = sent(files.quantized(near, 6), files.quantized(known, 6))
        assert modes(data).count("s") >= more
        lengths.append(len(data))
    # Beside that, their scales lie in one tensor with those that changed: 240 zeros.
    assert lengths[1] - lengths[0] <= 10 * 8 + 80


def test_a_base_in_another_spelling_is_the_same_network():
    known = files.quantized(files.weights(), 4)
    twin = parse(known)
    spelled = json.dumps(json.loads(twin.header), indent=1).encode()
    other = len(spelled).to_bytes(8, "little") + spelled + known[8 + len(twin.header) :]
    assert parse(other).id == twin.id
    new = files.quantized(files.moved(files.weights(), 0.01), 4)
    assert received(sent(new, known), other) == new


def test_another_tensor_type_name_or_text_is_another_network():
    one = files.safetensors({"a": np.zeros(2, np.float32)}, {"k": "v"})
    others = [
        files.safetensors({"b": np.zeros(2, np.float32)}, {"k": "v"}),
        files.safetensors({"a": np.zeros((1, 2), np.float32)}, {"k": "v"}),
        files.safetensors({"a": np.zeros(1, np.int64)}, {"k": "v"}),
        files.safetensors({"a": np.zeros(2, np.float32)}, {"k": "w"}),
        files.safetensors({"a": np.zeros(2, np.float32)}),
    ]
    assert len({parse(data).id for data in (one, *others)}) == 6


def test_another_base_is_refused_by_both_ids():
    known = files.weights()
    old, new, other = (files.quantized(files.moved(known, e), 4) for e in (0.01, 0.02, 0.03))
    data = sent(new, old)
    with pytest.raises(UpdateError) as refused:
        received(data, other)
    assert parse(old).id[:12] in str(refused.value) and parse(other).id[:12] in str(refused.value)
    with pytest.raises(UpdateError, match="give that one, with --base"):
        received(data)


@pytest.mark.parametrize("bits", [8, 6, 4, 3])
def test_a_packet_is_hardly_larger_than_the_entropy_of_its_codes(bits):
    new = parse(files.quantized(files.weights(shapes=BIG), bits))
    entropy = sum(entropies.order0(new.codes(name)) for name in new.layers) / 8
    rest = new.outline.bytes - len(new.tensors["codes"].data)
    assert len(sent(new.file())) <= 1.02 * entropy + rest + 1200


@pytest.mark.parametrize("energy", [0.003, 0.03, 0.1])
def test_a_difference_gains_what_its_energy_says(energy):
    known = files.weights(shapes={"one": (64, 64, 3, 3)})
    new = files.moved(known, energy)
    # A step for the whole tensor, 8 bits: the direct rate is far above 3 bits.
    step = {"one": np.array([np.abs(new["one"]).max() / 127], np.float32)}

    def whole(w):
        codes = {"one": np.clip(np.rint(w["one"] / step["one"][0]), -127, 127).astype(int)}
        return parse(files.checkpoint(codes, {"one": 8}, step))

    (change,) = [c for c in compared(whole(known), whole(new)).changes if c.name == "one"]
    assert change.direct * 8 / change.weights > 3
    assert change.measured == pytest.approx(change.gain, abs=0.15)


def permuted(known, seed=5):
    """Return the twin whose channels between two layers are in another order."""
    order = np.random.default_rng(seed).permutation(32)
    return {"one": known["one"][order], "two": known["two"][:, order], "fc": known["fc"]}


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_a_permuted_twin_takes_no_more_than_alone(bits):
    known = files.weights(shapes=BIG)
    old, new = files.quantized(known, bits), files.quantized(permuted(known), bits)
    data = sent(new, old)
    assert len(data) <= len(sent(new)) + 100
    assert received(data, old) == new


def test_relative_entropy_chooses_a_root_that_bytes_do_not():
    known = files.weights(shapes=BIG)
    # Twins have one histogram, and predict nothing; each of the tuned two predicts the other.
    relatives = {f"twin{i}": permuted(known, i) for i in range(3)}
    relatives |= {f"tuned{i}": files.moved(known, 0.02, i) for i in range(2)}
    members = {name: parse(files.quantized(w, 6)) for name, w in relatives.items()}
    data, tried = family.write(members)
    nearest = min(tried, key=lambda root: root.divergence)
    smallest = min(tried, key=lambda root: root.size)
    assert nearest.name.startswith("twin") and smallest.name.startswith("tuned")
    assert smallest.size < 0.98 * nearest.size
    assert manifest.read(data).members[0].name == smallest.name
    assert len(data) == smallest.size
    assert all(root.shared == 4 * sum(w.size for w in known.values()) for root in tried)


def test_a_member_of_a_family_needs_no_bytes_but_its_own_and_its_roots():
    known = files.weights(shapes=BIG)
    members = {
        name: parse(files.quantized(files.moved(known, 0.02, i), 6))
        for i, name in enumerate(("a", "b", "c", "d"))
    }
    data, _ = family.write(members, root="b")
    places = manifest.read(data).places()
    blank = bytearray(data)
    for name in ("a", "c"):
        for begin, end in places[name]:
            blank[begin:end] = bytes(end - begin)
    assert received(bytes(blank), only="d") == members["d"].file()
    assert received(data, only="b") == members["b"].file()
    with pytest.raises(UpdateError, match="SHA-256 is wrong"):
        received(bytes(blank), only="a")


def test_five_relatives_take_less_than_half_of_their_sum():
    known = files.weights(shapes=BIG)
    members = {f"m{i}": parse(files.quantized(files.moved(known, 0.004, i), 6)) for i in range(5)}
    data, _ = family.write(members, root="m0")
    alone = sum(len(packet.write([Sent(n, m)])) for n, m in members.items())
    assert len(data) < 0.6 * alone


def test_a_member_must_be_named_and_known():
    members = {n: parse(files.quantized(files.weights(i), 4)) for i, n in enumerate("ab")}
    data, _ = family.write(members)
    with pytest.raises(UpdateError, match="the packet holds .*: say which one, with --only NAME"):
        received(data)
    with pytest.raises(UpdateError, match="the packet has no 'c'"):
        received(data, only="c")


def test_the_same_network_twice_is_no_family():
    same = parse(files.quantized(files.weights(), 4))
    with pytest.raises(UpdateError, match="two members of the family are the same"):
        family.write({"a": same, "b": same})


def test_a_tiny_network_takes_a_few_hundred_bytes_more_than_its_file():
    new = files.safetensors({"a": np.random.default_rng(0).normal(size=(8, 4)).astype("f4")})
    assert len(new) < len(sent(new)) < len(new) + 300


def test_a_rounded_network_is_within_half_a_step():
    known = files.weights(shapes=BIG)
    new = files.floats(known, bias=np.arange(9, dtype=np.float32))
    for bits in (8, 5):
        back = parse(received(sent(new, bits=bits)))
        for name, w in known.items():
            step = np.abs(w).max() / (2 ** (bits - 1) - 1)
            values = floats(back.tensors[f"{name}.weight"].data).reshape(w.shape)
            assert np.abs(values - w).max() <= 0.5 * step * 1.001
        assert back.tensors["bias"].data.tobytes() == np.arange(9, dtype=np.float32).tobytes()


def test_a_rounded_difference_is_smaller_and_as_exact():
    known = files.weights(shapes=BIG)
    old, new = files.floats(known), files.floats(files.moved(known, 0.01))
    data = sent(new, old, bits=6)
    assert set(modes(data).lower()) == {"l"}
    assert len(data) < 0.7 * len(sent(new, bits=6))
    back, wanted = parse(received(data, old)), parse(new)
    for name, tensor in wanted.tensors.items():
        w = floats(tensor.data)
        step = np.abs(w).max() / 31
        assert np.abs(floats(back.tensors[name].data) - w).max() <= 0.5 * step * 1.001


def test_a_chain_of_five_updates_does_not_drift():
    known = files.weights(shapes=BIG)
    held = received(sent(files.floats(known), bits=4))
    for number in range(5):
        known = files.moved(known, 0.01, seed=number)
        held = received(sent(files.floats(known), held, bits=4), held)
        back = parse(held)
        for name, w in known.items():
            step = np.abs(w).max() / 7
            error = np.abs(floats(back.tensors[f"{name}.weight"].data).reshape(w.shape) - w)
            assert error.max() <= 0.5 * step * 1.001


def test_weights_that_are_not_finite_are_not_rounded():
    new = files.floats({"a": np.full((2, 2), np.nan, np.float32)})
    with pytest.raises(UpdateError, match="'a.weight' has values that are not finite"):
        sent(new, bits=4)
    assert received(sent(new)) == new


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e10])
def test_a_base_that_is_not_finite_or_far_away_predicts_nothing(value):
    known = files.weights(shapes=BIG)
    new = files.floats(known)
    wild = {name: w.copy() for name, w in known.items()}
    for w in wild.values():
        w.flat[0] = value
    old = files.floats(wild)
    assert set(modes(sent(new, old, bits=6)).lower()) == {"q"}
    assert received(sent(new, old, bits=6), old) == received(sent(new, bits=6))


def test_a_quantized_network_from_a_float_base():
    known = files.weights(shapes=BIG)
    old, new = files.floats(known), files.quantized(files.moved(known, 0.02), 4)
    data = sent(new, old)
    assert received(data, old) == new
    assert len(data) < 0.7 * len(sent(new))


def booked(seed, bits=4):
    """Return the bytes of a checkpoint of one layer with a codebook, and one with scales."""
    numbers = np.random.default_rng(seed)
    labels = np.clip(np.rint(numbers.normal(2**bits / 2, 2, (24, 16, 3, 3))), 0, 2**bits - 1)
    half = 2 ** (bits - 1)
    signed = np.where(labels >= half, labels - 2**bits, labels).astype(np.int8)
    codes = {"book": signed, "fc": numbers.integers(-7, 8, (10, 24))}
    steps = {"book": np.zeros(0), "fc": np.full(10, 0.1)}
    values = np.linspace(-1, 1, 2**bits, dtype=np.float32)
    about = {"formats": {"book": [-1, ""]}}
    return files.checkpoint(codes, {"book": bits, "fc": 4}, steps, values, **about), labels


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_places_in_codebooks_are_coded_in_their_order(bits):
    new, labels = booked(1, bits)
    network = parse(new)
    assert network.codes("book").tolist() == (labels - 2 ** (bits - 1)).astype(int).tolist()
    data, old = sent(new), booked(0, bits)[0]
    assert received(data) == new and received(sent(new, old), old) == new
    entropy = sum(entropies.order0(network.codes(name)) for name in network.layers) / 8
    rest = network.outline.bytes - len(network.tensors["codes"].data)
    assert len(data) < entropy + rest + 1200
    assert network.values("book") is None


def test_pruned_weights_stay_where_they_are():
    known = files.weights(shapes=BIG)
    mask = {n: np.random.default_rng(7).random(w.shape) < 0.2 for n, w in known.items()}
    near = files.moved(known, 0.02)
    old, new = (files.quantized({n: w[n] * mask[n] for n in w}, 6) for w in (known, near))
    data = sent(new, old)
    assert received(data, old) == new
    assert len(data) < 0.85 * len(sent(new))


@settings(deadline=None, max_examples=10)
@given(st.data())
def test_any_two_networks(data):
    numbers = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    names = data.draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    shape = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)

    def one():
        codes, bits, scales = {}, {}, {}
        for name in names:
            bits[name], size = data.draw(st.integers(2, 8)), data.draw(shape)
            half = 2 ** (bits[name] - 1)  # the lowest code too, as groups of weights have it
            codes[name] = numbers.integers(-half, half, size)
            count = data.draw(st.sampled_from([1, size[0]]))
            scales[name] = numbers.normal(size=count).astype(np.float32)
        return files.checkpoint(codes, bits, scales, numbers.random(3).astype(np.float32))

    old, new = one(), one()
    assert received(sent(new)) == new
    assert received(sent(new, old), old) == new


def test_files_from_python(tmp_path):
    known = files.weights()
    old, new, out = (tmp_path / f"{name}.safetensors" for name in ("old", "new", "out"))
    old.write_bytes(files.quantized(known, 4))
    new.write_bytes(files.quantized(files.moved(known, 0.01), 5))
    packed = haq.pack(new, tmp_path / "new.haqz", base=old)
    assert packed.size == (tmp_path / "new.haqz").stat().st_size
    network = haq.unpack(tmp_path / "new.haqz", out, base=old)
    assert out.read_bytes() == new.read_bytes()
    assert network.id == packed.manifest.members[0].id
    difference = haq.diff(old, new)
    assert difference.size == packed.size
    assert [change.new_bits for change in difference.changes if change.new_bits] == [5] * 4


@pytest.fixture
def short_sections(monkeypatch):
    monkeypatch.setattr(sections, "SECTION", 3000)


def test_a_large_network_has_sections_of_which_one_layer_needs_few(short_sections):
    known = files.weights(shapes={f"layer{i}": (16, 16, 3, 3) for i in range(8)})
    old, new = files.quantized(known, 5), files.quantized(files.moved(known, 0.01), 4)
    data = sent(new, old)
    read = manifest.read(data)
    assert len(read.members[0].sections) == 4
    assert received(data, old) == new
    fetched = []

    def fetch(begin, end):
        fetched.append(end - begin)
        return data[begin:end]

    for name in ("layer0", "layer7"):
        fetched.clear()
        codes = packet.values(read, fetch, name, parse(old))
        assert np.array_equal(codes, parse(new).codes(name))
        assert len(fetched) == (1 if name == "layer0" else 2)  # the scales are in the first one
    assert packet.values(read, fetch, "biases", parse(old)).dtype == np.uint8
    with pytest.raises(UpdateError, match="'new' has no tensor or layer 'layer9'"):
        packet.values(read, fetch, "layer9", parse(old))


def test_a_checkpoint_of_haq_comes_back_with_its_logits(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
    ).eval()
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    for bits, name in ((6, "old"), (3, "new")):
        policy = {layer.name: Bits(bits, 8) for layer in graph.layers}
        clips = calibrate(graph, [torch.rand(16, 3, 8, 8)], "max")
        network = quantize(graph, policy, clips)
        origin = checkpoint.Origin(model="toy", shape=(3, 8, 8))
        checkpoint.save(tmp_path / f"{name}.safetensors", network, policy, origin)
    haq.pack(tmp_path / "new.safetensors", tmp_path / "p.haqz", base=tmp_path / "old.safetensors")
    haq.unpack(tmp_path / "p.haqz", tmp_path / "out.safetensors", base=tmp_path / "old.safetensors")
    images = torch.rand(4, 3, 8, 8)
    back = haq.load(tmp_path / "out.safetensors", model=model)
    assert torch.equal(back(images), network(images))
