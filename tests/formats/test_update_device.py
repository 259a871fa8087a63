"""The decoder that a device carries, and golden packets: the same bytes from one file."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import update_files as files
from hypothesis import given, settings
from hypothesis import strategies as st
from test_update_packets import BIG, EDGES, booked, sent

from haq.formats.update import device, family, network, packet
from haq.formats.update.network import parse

GOLDEN = Path(__file__).parents[1] / "golden" / "updates"
FILE = Path(device.__file__)


def carried(data, base=None, only=None):
    """Return the bytes of the file that the device's decoder has from a packet."""
    held = None
    if base is not None:
        held = device.load(base)
    result = device.unpack(data, held, only)
    tensors = (tensor[2] for tensor in result.tensors.values())
    return b"".join([result.header, *tensors])


def test_it_is_short_and_imports_numpy_and_what_python_has():
    text = FILE.read_text()
    assert len(text.splitlines()) < 200
    imported = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    names = {word.strip(",") for line in imported for word in line.split()[1:]}
    own = sys.stdlib_module_names | {"numpy", "as", "np", "import", "sha256", "prod"}
    assert names <= own


@pytest.mark.parametrize("bits", range(2, 9))
def test_whole_networks_and_differences(bits):
    known = files.weights()
    old = files.quantized(known, 5)
    new = files.quantized(files.moved(known, 0.03), bits)
    assert carried(sent(new)) == new
    assert carried(sent(new, old), old) == new
    assert carried(sent(new, files.floats(known)), files.floats(known)) == new


def test_tensors_of_all_kinds():
    new = files.safetensors(EDGES, {"note": "é"})
    old = files.safetensors({n: np.sort(v, axis=None) if np.ndim(v) == 1 else v
                             for n, v in EDGES.items()})  # fmt: skip
    assert carried(sent(new)) == new
    assert carried(sent(new, old), old) == new


def test_checkpoints_of_another_layout_and_the_lowest_codes():
    lowest = files.checkpoint({"a": np.array([[-4, 3], [0, -1]])}, {"a": 3}, {"a": [-0.5]})
    odd = files.checkpoint({"a": np.ones((2, 2), int)}, {"a": 3}, layers=[["a", [2, 3], 3, 8, 2]])
    sparse = files.checkpoint({"a": np.ones((2, 2), int)}, {"a": 3}, codings={"a": ["mask", 2]})
    for data in (lowest, odd, sparse):
        assert carried(sent(data)) == data


def test_pruned_layers_and_weights_in_groups_in_every_format():
    old, new = files.pruned(0), files.pruned(1)
    assert carried(sent(new)) == new
    assert carried(sent(new, old), old) == new
    whole = files.quantized(files.weights(), 5)
    assert carried(sent(new, whole), whole) == new
    old, new = (booked(seed)[0] for seed in (0, 1))
    assert carried(sent(new)) == new
    assert carried(sent(new, old), old) == new


def test_a_device_without_the_second_file_says_which(tmp_path):
    (tmp_path / "device.py").write_bytes(FILE.read_bytes())
    (tmp_path / "p.haqz").write_bytes(sent(files.pruned(0)))
    command = [sys.executable, "-I", tmp_path / "device.py", tmp_path / "p.haqz", tmp_path / "out"]
    assert "device_pruned.py" in subprocess.run(command, capture_output=True, text=True).stderr
    assert not (tmp_path / "out").exists()


def test_rounded_networks():
    known = files.weights(shapes=BIG)
    old, new = files.floats(known), files.floats(files.moved(known, 0.01))
    for base in (None, old):
        data = sent(new, base, bits=5)
        assert carried(data, base) == packet.read(data, base and parse(base)).file()


def test_a_member_of_a_family():
    members = {n: parse(files.quantized(files.weights(i), 4)) for i, n in enumerate("abc")}
    data, _ = family.write(members, root="b")
    for name, member in members.items():
        assert carried(data, only=name) == member.file()


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_it_decodes_what_the_library_decodes(data):
    numbers = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
    shapes = {name: data.draw(shape) for name in "ab"}
    old, new = (
        files.quantized(
            {n: numbers.normal(size=s).astype(np.float32) for n, s in shapes.items()},
            {n: data.draw(st.integers(2, 8)) for n in shapes},
        )
        for _ in range(2)
    )
    assert carried(sent(new, old), old) == new


def test_what_is_damaged_leaves_the_file_as_it_was(tmp_path):
    out, source = tmp_path / "out.safetensors", tmp_path / "p.haqz"
    new = files.quantized(files.weights(), 4)
    out.write_bytes(b"before")

    def run(data):
        source.write_bytes(data)
        command = [sys.executable, "-I", str(FILE), str(source), str(out)]
        return subprocess.run(command, capture_output=True, text=True)

    data = bytearray(sent(new))
    data[-1] ^= 1
    assert "a section is damaged" in run(bytes(data)).stderr
    assert out.read_bytes() == b"before"
    data[-1] ^= 1
    assert run(bytes(data)).returncode == 0
    assert out.read_bytes() == new
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "p.haqz"]


PACKETS = {
    # Packet to the base that is held, and the file that must come out: of golden/updates/README.md.
    "whole.haqz": (None, None, "new.safetensors"),
    "difference.haqz": ("old.safetensors", None, "new.safetensors"),
    "family.haqz": (None, "new", "new.safetensors"),
    "pruned.haqz": (None, None, "pruned.safetensors"),
    "pruned_difference.haqz": ("pruned_old.safetensors", None, "pruned.safetensors"),
    "rounded.haqz": ("floats.safetensors", None, "rounded.safetensors"),
}


@pytest.mark.parametrize("name", PACKETS)
def test_golden_packets_are_read_as_they_were_written(name):
    base, only, out = PACKETS[name]
    data, wanted = (GOLDEN / name).read_bytes(), (GOLDEN / out).read_bytes()
    held = (GOLDEN / base).read_bytes() if base else None
    assert packet.read(data, held and parse(held), only).file() == wanted
    assert carried(data, held, only) == wanted


def test_the_beginning_of_a_golden_packet_by_hand():
    data = (GOLDEN / "whole.haqz").read_bytes()
    assert data[:12] == bytes.fromhex("89484151 5a0d0a1a 0200 0000")
    stored = int.from_bytes(data[12:16], "little")
    assert data[20:52] == hashlib.sha256(data[:20] + data[52 : 52 + stored]).digest()


def test_the_id_of_a_network_by_hand():
    data = files.safetensors({"b": np.uint8([7]), "a": np.float32([1.0])}, {"k": "é"})
    words = b'{"metadata": {"k": "\\u00e9"}, "tensors": {"a": ["F32", [1]], "b": ["U8", [1]]}}'
    assert network.parse(data).id == hashlib.sha256(words + b"\0\0\x80\x3f\x07").hexdigest()
