"""Decodes packets as of docs/updates.md: python device.py PACKET OUT [BASE [NAME]]."""
import io, json, os, re, runpy, struct, sys, zlib
from hashlib import sha256
from math import prod
import numpy as np
ENDS = [sorted({round(2 ** (k / n)) for k in range(11 * n)}) for n in (2, 4)]  # up to 4 bits, over
WEIGHTS = np.array([0, *(k if k < 8 else (4 + k % 4) << (k // 4 - 1) for k in range(45))])
SCALES = "scales", "group_scales"
def check(condition, sentence):
    if not condition:
        raise ValueError(sentence)
class Network:
    def __init__(self, header, data=b""):
        self.header, fields = struct.pack("<Q", len(header)) + header, json.loads(header)
        self.metadata, self.packed = fields.pop("__metadata__", {}), {}
        rows = sorted((entry.pop("data_offsets"), name, entry) for name, entry in fields.items())
        self.tensors = {n: [t["dtype"], t["shape"], data[slice(*place)]] for place, n, t in rows}
        about = json.loads(self.metadata.get("haq", "{}"))
        self.layers = self.table(about) if about.get("format", "")[:15] == "haq-checkpoint/" else {}
        units = [(name, shape, dtype) for name, (dtype, shape, _) in self.tensors.items()
                 if prod(shape) and not (name == "codes" and self.layers)]
        units.sort(key=lambda unit: unit[0] not in SCALES)
        self.units = units + [(name, *layer[:2]) for name, layer in self.layers.items()]
        words = {"metadata": self.metadata, "tensors": {n: t[:2] for n, t in self.tensors.items()}}
        self.words = json.dumps(words, sort_keys=True).encode()
    def table(self, about):  # layers: shape, bits, where their codes lie, and where their scales
        layers, at, first = {}, 0, 0
        for name, shape, bits, _, scales, *_ in (row for row in about["layers"] if row[2] <= 8):
            place = slice(at, at - (-prod(shape) * bits // 8))
            layers[name] = shape, bits, place, slice(first, first + scales)
            at, first = place.stop, first + scales
        known = [self.tensors.get(name, "  ")[:2] for name in ("codes", "scales")]
        return layers if known == [["U8", [at]], ["F32", [first]]] else {}
    def id(self):
        data = b"".join(self.tensors[name][2] for name in sorted(self.tensors))
        return sha256(self.words + data).hexdigest()
    def floats(self, name):
        return np.frombuffer(self.tensors[name][2], "<f4").reshape(self.tensors[name][1])
    def codes(self, name):
        (shape, bits, place, _), data = self.layers[name], self.tensors["codes"][2]
        digits = np.unpackbits(np.frombuffer(data, np.uint8)[place], bitorder="little")
        digits = digits[:prod(shape) * bits].reshape(-1, bits).astype(np.int32)
        return (digits @ (1 << np.arange(bits)) - (digits[:, -1] << bits)).reshape(shape)
    def steps(self, name):
        shape, scales = self.layers[name][0], self.floats("scales").ravel()[self.layers[name][3]]
        return np.repeat(scales, prod(shape) // len(scales)).reshape(shape)
    def bytes(self, name):
        return pack(self.packed[name], self.layers[name][1])
def network(header, data=b""):  # pruned layers and groups of weights need a file beside this one
    other = re.search(rb'\\"(codings|formats)\\":', header)
    more = other and runpy.run_path(__file__[:-3] + "_pruned.py")["pruned"]
    return (more(Network, Coder, expand, pack) if other else Network)(header, data)
def pack(z, bits):  # the first code in the lowest bits
    return np.packbits((z.reshape(-1, 1) >> np.arange(bits) & 1) > 0, bitorder="little").tobytes()
class Coder:
    def __init__(self, data):
        lanes, words, self.stashed = struct.unpack("<III", data[:12])
        self.x, self.at = np.frombuffer(data, "<u4", lanes, 12).astype(np.int64), 0
        self.words = np.frombuffer(data, "<u2", words, 12 + 4 * lanes).astype(np.int64)
        self.raw = data[12 + 4 * lanes + 2 * words:]
    def run(self, numbers, table):
        out = np.empty(len(numbers), np.uint8)
        for start in range(0, len(numbers), len(self.x)):
            x = self.x[:len(part := numbers[start:start + len(self.x)])]
            share, begin, out[start:start + len(x)] = (each[part, x & 4095] for each in table)
            x[:] = share * (x >> 12) + (x & 4095) - begin
            low = np.flatnonzero(x < 65536)
            x[low] = x[low] << 16 | self.words[self.at:self.at + len(low)]
            self.at += len(low)
        return out
    def end(self):
        check(self.at == len(self.words) and all(self.x >> 16 == 1), "the coder does not end well")
        return self.raw + (self.x & 65535).astype("<u2").tobytes()[:self.stashed]
def expand(share):  # frequency, first slot and symbol of each of the 4096 slots of each table
    symbol = np.stack([np.repeat(np.arange(len(row)), row) for row in share])
    begin = np.cumsum(share, 1) - share
    return np.take_along_axis(share, symbol, 1), np.take_along_axis(begin, symbol, 1), symbol
def passes(shape):  # the size, and of each pass: plane, rows, columns, planes near it and around
    places, rows, columns = (prod(shape[2:]), *shape[:2]) if shape[1:] else (1, 1, prod(shape))
    if places == 1 or places > 256:
        starts = [slice(start, None, 3) for start in range(3)]
        return (1, rows, columns * places), [(0, r, c, [], [0]) for r in starts for c in starts]
    where = 2 * np.indices(shape[2:]).reshape(len(shape) - 2, -1).T - (np.array(shape[2:]) - 1)
    def near(plane, known):
        return known[np.argsort(((where[known] - plane) ** 2).sum(1), kind="stable")]
    order, a = near(0, np.arange(places)), slice(None)
    each = ((p, near(where[p], order[:i]), near(where[p], order)) for i, p in enumerate(order))
    return (places, rows, columns), [(p, a, a, like[:8], around[:9]) for p, like, around in each]
def decode(coder, shape, bits, near, context, table, base, zero, based, apart):
    size, order = passes(shape)
    base, zero = (a.reshape(size[1], size[2], size[0]).transpose(2, 0, 1) for a in (base, zero))
    (u, z, far), done = np.zeros((3, *size), np.int64), np.zeros(size[1:], np.int64)
    half, large, b = 2 ** (bits - 1), bits > 4, np.abs(base).sum(0)
    near = iter([*near] * (9 if size[0] == 1 else 1))  # passes over one plane share theirs
    for plane, rows, columns, like, around in order:
        here, e = (plane, rows, columns), 2048
        others = [u[q] for q in like] + [base[q, rows, columns] for q in around if based]
        p = base[here] + (sum((v * c for v, c in zip(others, near)), 0 * base[here]) >> 8)
        if done.any():
            sums, n, mean = far.sum(0), done.sum, far.sum() // done.sum()
            row, column = (np.where(n(i), sums.sum(i) // np.maximum(n(i), 1), mean) for i in (1, 0))
            e = 24 * (row[:, None] * column // max(mean, 1)) + sums * (size[0] > 1)
            e = (e // (24 + done * (size[0] > 1)))[rows, columns]
        elif based:
            row, column = (b.sum(i, keepdims=True) // (size[0] * b.shape[i]) for i in (1, 0))
            e = (3 * (b // size[0]) + row + column)[rows, columns] >> 4
        c = zero[here] * 736 + (32 >> large) * np.searchsorted(ENDS[large], e, "right")
        shift = np.clip((p + 8) // 16, 1 - half, half - 1) * large
        rest = np.clip(p - 16 * shift, -8, 8) if large else p
        c += np.abs(rest) >> 1 if large else np.minimum((np.abs(p) + 2) >> 2, 31)
        s = coder.run(context[c.ravel()], table).reshape(c.shape).astype(np.int64)
        sign = np.where(rest < 0, -1, 1)  # apart: zero and what would be 0 have each other's symbol
        s = np.where(s == 0, own := apart * ((half - sign * shift) % (2 * half)), s * (s != own))
        z[here] = (sign * (s - half) + shift + half) % (2 * half) - half
        u[here], far[here] = 16 * z[here] - base[here], np.abs(16 * z[here] - p)
        done[rows, columns] += 1
    return z.transpose(1, 2, 0).reshape(shape)
def predict(new, base, name, bits):  # in sixteenths of a step; and where it is zero
    top, weight = 2 ** (bits - 1) - 1, f"{name}.weight"
    known = (base.codes(name).astype("f4") * base.steps(name) if name in base.layers else
             base.floats(weight if weight in base.tensors else name))
    with np.errstate(all="ignore"):
        steps = np.nan_to_num(known / new.steps(name), nan=0.0)
    return np.clip(np.rint(steps * np.float32(16)), -16 * top, 16 * top).astype(int), known == 0
def assemble(raw, tensor, base, mode, parts):  # parts: bytes, or how many of raw, which is left
    data = np.stack([np.frombuffer(raw.read(p), "u1") if type(p) is int else p for p in parts], 1)
    if mode == "v":
        folded = np.ascontiguousarray(data).view(f"<u{len(parts)}").ravel()
        data = ((folded >> 1) ^ np.negative(folded & 1)) + np.frombuffer(base[2], folded.dtype)
    tensor[2] = data.tobytes()
def section(coder, new, base, sets, near, member, places):
    late, raw = [], io.BytesIO(coder.raw)
    for _, at in places:
        (name, shape, kind), mode = new.units[at], member["modes"][at]
        tensor, way = new.tensors.get(name), mode.lower()
        bits, step = member.get("lossy", {}).get(str(at), (kind, ""))
        if mode == "s" and isinstance(kind, str):
            tensor[2] = base.tensors[name][2]
        elif mode == "s":
            new.packed[name] = base.codes(name)
        elif isinstance(bits, int):
            guess = predict(new, base, name, bits) if way == "v" else 2 * [np.zeros(shape, int)]
            rows = next((row for k, w, *row in near if [k, w] == [shape[2:], way]), ())
            table, apart = sets[f"c{bits}{mode}"], mode.isupper()
            z = decode(coder, shape, bits, rows, *table, *guess, way == "v", apart)
            if way in "ql":
                w = z.astype(np.float32) * np.frombuffer(bytes.fromhex(step), "<f4")
                tensor[2] = (w + base.floats(name) if way == "l" else w).astype("<f4").tobytes()
            new.packed[name] = z
        else:
            zeros, item = np.zeros(prod(shape), int), int(re.findall(r"\d+|$", kind)[0] or 8) // 8
            keys = (f"p{item}{byte}{mode}" for byte in range(item))
            parts = [coder.run(zeros, sets[k][1]) if k in sets else len(zeros) for k in keys]
            late.append((tensor, base and base.tensors.get(name), mode, parts))
            if name in SCALES:  # codes that follow are predicted with them
                assemble(raw, *late.pop())
    raw = io.BytesIO(coder.end()[raw.tell():])
    for tensor in late:
        assemble(raw, *tensor)
def unpack(packet, base=None, only=None):  # base: the Network held; only: the name of a member
    check(packet[:12] == b"\x89HAQZ\r\n\x1a\2\0\0\0", "not a packet of version 2")
    begin, sets = 52 + int.from_bytes(packet[12:16], "little"), {}
    check(sha256(packet[:20] + packet[52:begin]).digest() == packet[20:52], "a damaged manifest")
    take = io.BytesIO(zlib.decompress(packet[52:begin])).read
    fields = json.loads(take(int.from_bytes(take(4), "little")))
    for key, tables in fields["sets"].items():
        contexts, symbols = (1472, 2 ** int(key[1])) if key[0] == "c" else (1, 256)
        context = np.frombuffer(take(contexts), np.uint8)
        levels = np.frombuffer(take(tables * symbols), np.uint8).reshape(tables, symbols)
        ends, rest = np.cumsum(WEIGHTS[levels], 1), 4096 - (levels > 0).sum(1, keepdims=True)
        sets[key] = context, expand(np.diff(ends * rest // ends[:, -1:], prepend=0) + (levels > 0))
    members = {one["name"]: one for one in fields["members"]}
    headers = {name: take(one["header"][0]) for name, one in members.items()}
    for row in (row for one in members.values() for row in one["sections"]):
        row[2:], begin = [packet[begin:begin + row[0]], take(32)], begin + row[0]
        check(sha256(row[2]).digest() == row[3], "a section is damaged")
    check(begin == len(packet), "the packet has another length")
    one = members[only or next(iter(members))]
    inside = [name for name, other in members.items() if other["id"] == one["base"]]
    base = unpack(packet, base, inside[0]) if inside else base
    check(one["base"] in (None, base and base.id()), f"a difference to {one['base']}")
    words = zlib.decompressobj(-15, base.words if one["base"] else b"")
    new, places = network(words.decompress(headers[one["name"]])), iter(range(len(one["modes"])))
    for _, units, data, _ in one["sections"]:
        section(Coder(data), new, base, sets, fields["near"], one, zip(range(units), places))
    if new.layers:
        new.tensors["codes"][2] = b"".join(map(new.bytes, new.layers))
    check(new.id() == one["id"], "another network came out")
    return new
def load(data):
    begin = 8 + int.from_bytes(data[:8], "little")
    return network(data[8:begin], data[begin:])
if __name__ == "__main__":
    packet, *base = (np.fromfile(path, "u1").tobytes() for path in sys.argv[1:4:2])
    result = unpack(packet, *map(load, base), *sys.argv[4:])
    with open(sys.argv[2] + ".part", "wb", buffering=0) as file:
        file.write(b"".join([result.header, *(t[2] for t in result.tensors.values())]))
        os.fsync(file.fileno())
    os.replace(sys.argv[2] + ".part", sys.argv[2])
