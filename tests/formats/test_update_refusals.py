"""What is refused: damage, forgeries, bombs, chains with gaps; and that nothing is written then."""

import json
import struct
from itertools import pairwise

import numpy as np
import pytest
import update_files as files
import update_forging as forging
from hypothesis import given, settings
from hypothesis import strategies as st

import haq
from haq.errors import UpdateError
from haq.formats.update import family, manifest, packet
from haq.formats.update.chain import MAX_CHAIN
from haq.formats.update.network import parse
from haq.formats.update.packet import Sent
from haq.formats.update.units import contexts_of, symbols_of

EXAMPLES = forging.examples()
WHOLE = EXAMPLES[0][0]

SMOOTH = 5
"""The example whose kernels predict each other, so that it has coefficients."""


@pytest.mark.parametrize("number", [0, 1, 4])
def test_every_flipped_byte_is_refused(number):
    data, base, _ = EXAMPLES[number]
    for at in range(len(data)):
        for bit in (0x01, 0x80):
            flipped = bytearray(data)
            flipped[at] ^= bit
            with pytest.raises(UpdateError):
                packet.read(bytes(flipped), base)


def test_every_length_but_the_right_one_is_refused():
    for length in range(len(WHOLE)):
        with pytest.raises(UpdateError, match=r"cut short|not a packet"):
            packet.read(WHOLE[:length])
    with pytest.raises(UpdateError, match="was added to"):
        packet.read(WHOLE + b"\0")


def test_parts_of_two_packets_are_refused():
    other = packet.write([Sent("new", parse(files.quantized(files.weights(9), 4)))])
    begin = manifest.read(WHOLE).begin
    with pytest.raises(UpdateError, match="cut short|added to"):
        packet.read(WHOLE[:begin] + other[manifest.read(other).begin :])
    swapped = other[manifest.read(other).begin :][: len(WHOLE) - begin]
    with pytest.raises(UpdateError, match="their SHA-256 is wrong"):
        packet.read(WHOLE[:begin] + swapped.ljust(len(WHOLE) - begin, b"\0"))


def forged(change, number=0):
    """Return an example whose fields were changed, its digests made right."""
    fields, rest, sections = forging.taken_apart(EXAMPLES[number][0])
    change(fields)
    return forging.signed(fields, rest, sections)


def member(fields):
    return fields["members"][0]


FORGERIES = {
    "has other fields": lambda f: f.pop("near"),
    "has 0 members": lambda f: f.update(members=[]),
    "a set of tables": lambda f: f["sets"].update(c9d=1),
    "has a kernel": lambda f: f["near"].append([[0], "d"]),
    "too few or too many coefficients": lambda f: f["near"][0].pop(),
    "a coefficient is out of range": lambda f: f["near"][0].__setitem__(2, 1024),
    "has a kind": lambda f: f["near"][0].__setitem__(1, "x"),
    "has no id": lambda f: member(f).update(id="12"),
    "no header or unknown modes": lambda f: member(f).update(modes="x" * 4),
    "do not have its tensors": lambda f: member(f).update(modes="d"),
    "a section has no size": lambda f: member(f)["sections"][0].__setitem__(0, -1),
    "a member has no name": lambda f: member(f).update(name=""),
    "cannot be in mode 's'": lambda f: member(f).update(modes="s" * len(member(f)["modes"])),
    "cannot be in mode 'q'": lambda f: member(f).update(modes="q" * len(member(f)["modes"])),
    "is not as long as it says": lambda f: member(f)["header"].__setitem__(1, 5),
    "what came out is network": lambda f: member(f).update(id="0" * 64),
}


@pytest.mark.parametrize("sentence", FORGERIES)
def test_forged_manifests_are_refused_in_sentences_of_their_own(sentence):
    with pytest.raises(UpdateError, match=sentence):
        packet.read(forged(FORGERIES[sentence], SMOOTH))


@pytest.mark.parametrize(
    "step, sentence",
    [("00000000", "steps are positive"), ("0000c07f", "steps are positive"), ("00", "malformed")],
)
def test_steps_that_are_none_are_refused(step, sentence):
    def change(fields):
        row = next(iter(member(fields)["lossy"].values()))
        row[1] = step

    with pytest.raises(UpdateError, match=sentence):
        packet.read(forged(change, 3), EXAMPLES[3][1])


def with_a_unit_more(fields):
    member(fields)["modes"] += "d"
    member(fields)["sections"][-1][1] += 1


def with_nine_bits(fields):
    next(iter(member(fields)["lossy"].values()))[0] = 9


def test_forged_counts_and_tables_have_sentences_of_their_own():
    with pytest.raises(UpdateError, match="tensors and layers by its header, and"):
        packet.read(forged(with_a_unit_more))
    with pytest.raises(UpdateError, match="a rounding has no bits"):
        packet.read(forged(with_nine_bits, 3), EXAMPLES[3][1])
    fields, rest, sections = forging.taken_apart(WHOLE)
    key = next(iter(fields["sets"]))
    levels = slice(contexts_of(key), contexts_of(key) + symbols_of(key))
    for place, content, sentence in (
        (slice(0, 1), b"\xc8", "a context of the set .* has no table"),
        (levels, bytes([60]) * symbols_of(key), "a table has level 60, and the highest is 45"),
        (levels, bytes(symbols_of(key)), "a table has no symbol with a weight"),
    ):
        changed = bytearray(rest)
        changed[place] = content
        with pytest.raises(UpdateError, match=sentence):
            packet.read(forging.signed(fields, bytes(changed), sections))
    with pytest.raises(UpdateError, match="bytes are left over"):
        packet.read(forging.signed(fields, rest + b"12345", sections))


@pytest.mark.parametrize(
    "more, sentence",
    [
        ({"version": 3}, "version 3.0, and this HAQ reads 2.0"),
        ({"version": 1}, "version 1.0, and this HAQ reads 2.0"),
        ({"zero": 1}, "version 2.1"),
        ({"expanded": 2**31}, "none has over"),
        ({"expanded": 10}, "not as long as it says"),
    ],
)
def test_other_versions_and_false_lengths(more, sentence):
    with pytest.raises(UpdateError, match=sentence):
        packet.read(forging.signed(*forging.taken_apart(WHOLE), **more))


def test_a_deflate_bomb_is_not_expanded():
    fields, rest, sections = forging.taken_apart(WHOLE)
    bomb = forging.signed(fields, rest + bytes(2**20), sections, expanded=200)
    assert len(bomb) < 10_000
    with pytest.raises(UpdateError, match="not as long as it says"):
        packet.read(bomb)


def test_a_small_packet_cannot_hold_a_huge_network():
    # A table of one symbol: a gigabyte of the same value would take no words at all.
    header = {"a": {"dtype": "U8", "shape": [2**30], "data_offsets": [0, 2**30]}}
    text = json.dumps(header).encode()
    stored = manifest.deflated(text, None)
    fields = {
        "members": [{"name": "a", "id": "0" * 64, "base": None, "header": [len(stored), len(text)],
                     "modes": "d", "sections": [[16, 1]]}],
        "sets": {"p10d": 1}, "near": [],
    }  # fmt: skip
    levels = bytearray(256)
    levels[5] = 2
    section = struct.pack("<IIII", 1, 0, 0, 65536)
    data = forging.signed(fields, bytes(1) + bytes(levels) + stored + bytes(32), section)
    with pytest.raises(UpdateError, match=f"is said to hold a network of {2**30}"):
        packet.read(data)


@pytest.mark.parametrize("shape", [[2**40, 2**40], [1, 1, 2**20, 2**20], [0, 2**62]])
def test_shapes_that_no_memory_has_are_refused_or_empty(shape):
    size = int(np.prod(shape, dtype=object))
    header = {"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text
    if size:
        with pytest.raises(UpdateError):
            parse(data)
    else:
        assert packet.read(packet.write([Sent("a", parse(data))])).file() == data


def test_lanes_that_do_not_end_well_are_seen():
    fields, rest, sections = forging.taken_apart(WHOLE)
    _, words, _ = struct.unpack("<III", sections[:12])
    for count, change, sentence in (
        (0, lambda s: s[:8] + struct.pack("<I", 9999) + s[12:], "shorter than its coder needs"),
        (0, lambda s: s[:8] + bytes(4) + s[12:], "end where encoders begin"),
        (0, lambda s: struct.pack("<I", 0) + s[4:], "shorter than its coder needs"),
        (0, lambda s: s[:4] + struct.pack("<I", words + 1) + s[8:], "left over"),
        (0, lambda s: s[:12] + bytes(4) + s[16:], r"begins below 2\*\*16"),
        (0, lambda s: struct.pack("<I", 2**31) + s[4:], "shorter than its coder needs"),
        (1, lambda s: s + b"x", "bytes as they are, and its tensors"),
    ):
        fields["members"][0]["sections"][0][0] = len(sections) + count
        with pytest.raises(UpdateError, match=sentence):
            packet.read(forging.signed(fields, rest, change(sections)))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(EXAMPLES), st.integers(0, 2**32))
def test_no_mutation_gives_another_network_or_another_error(example, seed):
    data, base, wanted = example
    got = forging.outcome(forging.mutated(data, np.random.default_rng(seed)), base)
    assert got == wanted or " " in got


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200), st.integers(0, 100))
def test_any_bytes_at_all(noise, kept):
    with pytest.raises(UpdateError):
        packet.read(WHOLE[:kept] + noise)


def test_members_that_need_each_other_end():
    members = {n: parse(files.quantized(files.weights(ord(n)), 4)) for n in "ab"}
    fields, rest, sections = forging.taken_apart(family.write(members, root="a")[0])
    fields["members"][0]["base"] = members["b"].id
    data = forging.signed(fields, rest, sections)
    for name in "ab":
        with pytest.raises(UpdateError, match="needs"):
            packet.read(data, None, name)
    # With the base in hand nothing else is needed.
    assert packet.read(data, members["a"], "b").id == members["b"].id
    assert packet.read(data, members["b"], "a").id == members["a"].id


def folder(tmp_path, count=4):
    """Return files of a chain and the packets between them."""
    known = files.weights(shapes={"conv": (4, 3, 3, 3)})
    names = [tmp_path / f"{number}.safetensors" for number in range(count)]
    for number, name in enumerate(names):
        name.write_bytes(files.quantized(files.moved(known, 0.01, number), 4))
    packets = []
    for old, new in pairwise(names):
        packets.append(tmp_path / f"{new.stem}.haqz")
        haq.pack(new, packets[-1], base=old)
    return names, packets


def test_a_chain_in_any_order(tmp_path):
    names, packets = folder(tmp_path)
    out = tmp_path / "out.safetensors"
    for order in ([2, 0, 1], [0, 1, 2], [1, 2, 0]):
        haq.unpack([packets[at] for at in order], out, base=names[0])
        assert out.read_bytes() == names[-1].read_bytes()
    first = tmp_path / "first.haqz"
    haq.pack(names[0], first)
    haq.unpack([*packets, first], out)
    assert out.read_bytes() == names[-1].read_bytes()


def test_chains_with_gaps_forks_and_too_many_packets(tmp_path):
    names, packets = folder(tmp_path)
    out = tmp_path / "out.safetensors"
    with pytest.raises(UpdateError, match="no packet follows network"):
        haq.unpack([packets[0], packets[2]], out, base=names[0])
    with pytest.raises(UpdateError, match="no packet follows nothing"):
        haq.unpack(packets, out)
    fork = tmp_path / "fork.haqz"
    haq.pack(names[3], fork, base=names[0])
    with pytest.raises(UpdateError, match="2 packets follow network .*: a chain has one way"):
        haq.unpack([*packets, fork], out, base=names[0])
    copies = [tmp_path / f"copy{number}.haqz" for number in range(MAX_CHAIN + 1)]
    for copy in copies:
        copy.write_bytes(packets[0].read_bytes())
    with pytest.raises(UpdateError, match=f"at most {MAX_CHAIN} are taken in a row"):
        haq.unpack(copies, out, base=names[0])
    assert not out.exists()


def test_refusals_leave_the_old_file_and_nothing_else(tmp_path):
    names, packets = folder(tmp_path, 3)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"before")
    before = sorted(tmp_path.iterdir())
    data = bytearray(packets[0].read_bytes())
    data[-3] ^= 4
    packets[1].write_bytes(bytes(data))
    with pytest.raises(UpdateError, match="1.haqz: '1' is a difference to network"):
        haq.unpack(packets[0], out, base=names[2])
    with pytest.raises(UpdateError, match="2.haqz: bytes .* are damaged"):
        haq.unpack(packets[1], out, base=names[0])
    assert out.read_bytes() == b"before"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"bits": 1}, "1 bits: give 2 to 8"),
        ({"bits": 4}, "'a' has no float32 tensor of two or more dimensions that 4 bits could"),
        ({"out": "x.bin"}, "the name of a packet ends in .haqz"),
        ({"base": "missing.safetensors"}, "cannot read missing.safetensors"),
        ({"new": []}, "there is no file to pack"),
    ],
)
def test_what_cannot_be_packed(tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(files.quantized(files.weights(), 4))
    asked = {"new": "a.safetensors", "out": "x.haqz", **options}
    with pytest.raises(UpdateError, match=sentence):
        haq.pack(**asked)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_two_files_of_one_name_and_families_with_a_base(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        data = files.quantized(files.weights(ord(name)), 4)
        (tmp_path / name / "m.safetensors").write_bytes(data)
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    both = [tmp_path / name / "m.safetensors" for name in ("a", "b")]
    with pytest.raises(UpdateError, match="two files are called m"):
        haq.pack(both, tmp_path / "x.haqz")
    both = [tmp_path / f"{name}.safetensors" for name in ("a", "b")]
    with pytest.raises(UpdateError, match="a family takes no base"):
        haq.pack(both, tmp_path / "x.haqz", base=both[0])


def file_of(**changes):
    """Return a small safetensors file whose header was changed."""
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"1234", "it has 4 bytes"),
        (struct.pack("<Q", 2**40), "is said to have"),
        (struct.pack("<Q", 4) + b"[1] ", "not a JSON object"),
        (struct.pack("<Q", 4) + b"nope", "not JSON"),
        (file_of(dtype="F4"), "is 'F4'; only"),
        (file_of(shape=[3]), "with its shape"),
        (file_of(shape="x"), "no type, shape and place"),
        (file_of() + b"\0", "need 8 bytes, and 9 are there"),
    ],
)  # fmt: skip
def test_files_that_are_no_networks(data, sentence, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(UpdateError, match=sentence):
        haq.pack(tmp_path / "a.safetensors", tmp_path / "a.haqz")
    assert not (tmp_path / "a.haqz").exists()


ODD = [
    files.safetensors({"a": np.zeros(1, np.int8)}, {"haq": "{"}),
    files.safetensors({"a": np.zeros(1, np.int8)}, {"haq": '{"format": "haq-checkpoint/1"}'}),
    files.checkpoint({"a": np.ones((2, 2), int)}, {"a": 3}, {"a": [1, 2, 3]}),
    files.checkpoint({"a": np.ones((2, 2), int)}, {"a": 3}, layers=[["a", [2, 3], 3, 8, 2]]),
    files.checkpoint({"a": np.ones((2, 2), int)}, {"a": 3}, codings={"a": ["bitmap", 2]}),
    files.checkpoint({"a": np.ones((2, 2), int)}, {"a": 3}, formats={"a": [32, ""]}),
    files.checkpoint({"a": np.ones((2, 2), int)}, {"a": 3}, formats={"a": 32}),
]


@pytest.mark.parametrize("data", ODD)
def test_checkpoints_of_another_layout_are_packed_as_tensors(data):
    packed = packet.write([Sent("a", parse(data))])
    assert packet.read(packed).file() == data
    assert not parse(data).layers


def test_codes_that_do_not_end_with_zeros_are_refused():
    data = bytearray(files.checkpoint({"a": np.ones((1, 1), int)}, {"a": 3}))
    data[-1] |= 0x80
    with pytest.raises(UpdateError, match="the codes of layer 'a': the last byte is not filled"):
        packet.write([Sent("a", parse(bytes(data)))])
