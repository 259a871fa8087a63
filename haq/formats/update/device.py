"""Decodes packets, with numpy alone: python device.py PACKET OUT [BASE [NAME]]."""
# It follows docs/updates.md. What is damaged raises, and leaves OUT as it was.
import io, json, os, re, struct, sys, zlib
from hashlib import sha256
from math import prod
import numpy as np
SIZES = np.searchsorted([1, *(round(2 ** (k / 2)) for k in range(2, 22))], np.arange(2049), "right")
WEIGHTS = np.array([0, *(k if k < 8 else (4 + k % 4) << (k // 4 - 1) for k in range(45))])
def check(condition, sentence):
    if not condition:
        raise ValueError(sentence)
class Network:
    def __init__(self, header, data=b""):
        self.header, fields = header, json.loads(header)
        self.metadata, self.layers, self.packed = fields.pop("__metadata__", {}), {}, {}
        rows = sorted((entry.pop("data_offsets"), name, entry) for name, entry in fields.items())
        self.tensors = {n: [t["dtype"], t["shape"], data[slice(*place)]] for place, n, t in rows}
        about, at, first = json.loads(self.metadata.get("haq", "{}")), 0, 0
        if str(about.get("format")).startswith("haq-checkpoint/") and not about.get("codings"):
            for name, shape, bits, _, scales, *_ in (r for r in about["layers"] if r[2] <= 8):
                place = slice(at, at - (-prod(shape) * bits // 8))
                self.layers[name] = shape, bits, place, slice(first, first + scales)
                at, first = place.stop, first + scales
        known = [self.tensors.get(name, "  ")[:2] for name in ("codes", "scales")]
        self.layers = self.layers if known == [["U8", [at]], ["F32", [first]]] else {}
        units = [(name, shape, dtype) for name, (dtype, shape, _) in self.tensors.items()
                 if prod(shape) and not (name == "codes" and self.layers)]
        self.units = [*sorted(units, key=lambda unit: unit[0] != "scales"),
                      *((name, *layer[:2]) for name, layer in self.layers.items())]
        words = {"metadata": self.metadata, "tensors": {n: t[:2] for n, t in self.tensors.items()}}
        self.words = json.dumps(words, sort_keys=True).encode()
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
class Coder:
    def __init__(self, data):
        lanes, words, self.stashed = struct.unpack("<III", data[:12])
        self.x, self.at, self.taken = np.frombuffer(data, "<u4", lanes, 12).astype(np.int64), 0, 0
        self.words = np.frombuffer(data, "<u2", words, 12 + 4 * lanes).astype(np.int64)
        self.raw = data[12 + 4 * lanes + 2 * words:]
    def run(self, numbers, table):
        out = np.empty(len(numbers), np.uint8)
        for start in range(0, len(numbers), len(self.x)):
            part = numbers[start:start + len(self.x)]
            x = self.x[:len(part)]
            share, begin, out[start:start + len(part)] = (each[part, x & 4095] for each in table)
            x[:] = share * (x >> 12) + (x & 4095) - begin
            low = np.flatnonzero(x < 65536)
            x[low] = x[low] << 16 | self.words[self.at:self.at + len(low)]
            self.at += len(low)
        return out
    def take(self, n, table):  # symbols, or where they lie in what is sent as it is
        self.taken += 0 if table else n
        return self.run(np.zeros(n, int), table) if table else slice(self.taken - n, self.taken)
    def end(self):
        check(self.at == len(self.words) and all(self.x >> 16 == 1), "the coder does not end well")
        self.raw += (self.x & 65535).astype("<u2").tobytes()[:self.stashed]
def expand(levels):  # frequency, first slot and symbol of each of the 4096 slots of each table
    ends, rest = np.cumsum(WEIGHTS[levels], 1), 4096 - (levels > 0).sum(1)
    share = np.diff(ends * rest[:, None] // ends[:, -1:], prepend=0) + (levels > 0)
    symbol = np.stack([np.repeat(np.arange(len(row)), row) for row in share])
    begin = np.cumsum(share, 1) - share
    return np.take_along_axis(share, symbol, 1), np.take_along_axis(begin, symbol, 1), symbol
def passes(shape):  # the size, and of each pass: plane, rows, columns, planes near it
    places, rows, columns = (prod(shape[2:]), *shape[:2]) if shape[1:] else (1, 1, prod(shape))
    if places == 1 or places > 256:
        starts = ((r, c) for r in range(min(3, rows)) for c in range(min(3, columns * places)))
        every = [(0, slice(r, None, 3), slice(c, None, 3), []) for r, c in starts]
        return (1, rows, columns * places), every
    where = 2 * np.indices(shape[2:]).reshape(len(shape) - 2, -1).T - (np.array(shape[2:]) - 1)
    order = np.argsort((where ** 2).sum(1), kind="stable")
    far = [((where[order[:at]] - where[plane]) ** 2).sum(1) for at, plane in enumerate(order)]
    near = (order[np.argsort(each, kind="stable")[:8]] for each in far)
    return (places, rows, columns), [(p, slice(None), slice(None), next(near)) for p in order]
def decode(coder, shape, bits, near, context, table, base, zero):  # base: sixteenths of a step
    size, order = passes(shape)
    base, zero = (a.reshape(size[1], size[2], size[0]).transpose(2, 0, 1) for a in (base, zero))
    u, z, done = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size[1:], np.int64)
    near, half, own, known = iter(near), 2 ** (bits - 1), 0 * done, 0
    for plane, rows, columns, like in order:
        here = plane, rows, columns
        p = base[here] + (sum((u[other] * next(near, 0) for other in like), 0 * u[here]) >> 6)
        c = zero[here] * (23 * 32) + 22 * 32
        if done.any():
            sums, n, mean = np.abs(u).sum(0), done.sum, np.abs(u).sum() // done.sum()
            row, column = (np.where(n(i), sums.sum(i) // np.maximum(n(i), 1), mean) for i in (1, 0))
            e = 2 * (row[rows, None] + column[None, columns]) + own[rows, columns]
            c += 32 * (SIZES[np.minimum(e // (known + 4), 2048)] - 22)
        shift = 0 * p if bits <= 4 else np.clip((p + 8) // 16, 1 - half, half - 1)
        rest = p if bits <= 4 else np.clip(p - 16 * shift, -8, 8)
        c += np.minimum((np.abs(p) + 2) >> 2, 31) if bits <= 4 else np.abs(rest) >> 1
        symbol = coder.run(context[c.ravel()], table).reshape(c.shape).astype(np.int64)
        z[here] = (np.where(rest < 0, -1, 1) * (symbol - half) + shift + half) % (2 * half) - half
        u[here] = 16 * z[here] - base[here]
        done[rows, columns] += 1
        own, known = (own + np.abs(u[plane]), known + 1) if size[0] > 1 else (own, known)
    return z.transpose(1, 2, 0).reshape(shape)
def predict(network, base, name, bits, mode):  # in sixteenths of a step; and where it is zero
    top, weight = 2 ** (bits - 1) - 1, f"{name}.weight"
    if name in base.layers:
        ratio = np.float32(top / (2 ** (base.layers[name][1] - 1) - 1))
        known = base.codes(name).astype("f4") * (base.steps(name) if mode == "v" else ratio)
    else:
        known = base.floats(weight if weight in base.tensors else name)
    with np.errstate(all="ignore"):
        steps = np.nan_to_num(known / network.steps(name), nan=0.0) if mode == "v" else known
    steps = np.clip(np.rint(steps * np.float32(16)), -16 * top, 16 * top).astype(np.int64)
    return steps, known == 0
def assemble(raw, tensor, base, mode, parts):  # parts: bytes, or places in raw
    raw = np.frombuffer(raw, np.uint8)
    data = np.stack([raw[p] if isinstance(p, slice) else p for p in parts], 1)
    if mode == "v":
        folded = np.ascontiguousarray(data).view(f"<u{len(parts)}").ravel()
        data = ((folded >> 1) ^ np.negative(folded & 1)) + np.frombuffer(base[2], folded.dtype)
    tensor[2] = data.tobytes()
def section(coder, network, base, sets, near, member, places):
    late = []
    for at in places:
        (name, shape, kind), mode = network.units[at], member["modes"][at]
        tensor = network.tensors.get(name)
        bits, step = member.get("lossy", {}).get(str(at), (kind, ""))
        if mode == "s" and isinstance(kind, str):
            tensor[2] = base.tensors[name][2]
        elif mode == "s":
            network.packed[name] = base.tensors["codes"][2][base.layers[name][2]]
        elif isinstance(bits, int):
            guess, group = (np.zeros(shape, int), np.zeros(shape, bool)), mode.replace("r", "v")
            guess = predict(network, base, name, bits, mode) if group == "v" else guess
            rows = near.get((tuple(shape[2:]), group), ())
            z = decode(coder, shape, bits, rows, *sets[f"c{bits}{group}"], *guess)
            if mode in "ql":
                w = z.astype(np.float32) * np.frombuffer(bytes.fromhex(step), "<f4")
                tensor[2] = (w + base.floats(name) if mode == "l" else w).astype("<f4").tobytes()
            else:
                digits = (z.reshape(-1, 1) >> np.arange(bits) & 1).astype(np.uint8)
                network.packed[name] = np.packbits(digits, bitorder="little").tobytes()
        else:
            item, parts = int(re.findall(r"\d+|$", kind)[0] or 8) // 8, []
            for key in (f"p{item}{byte}{mode}" for byte in range(item)):
                parts.append(coder.take(prod(shape), sets[key][1] if key in sets else None))
            late.append((tensor, base and base.tensors.get(name), mode, parts))
            if name == "scales":  # codes that follow are predicted with them
                assemble(coder.raw, *late.pop())
    coder.end()
    for tensor in late:
        assemble(coder.raw, *tensor)
def unpack(packet, base=None, only=None):  # base: the Network held; only: the name of a member
    check(packet[:12] == b"\x89HAQZ\r\n\x1a\1\0\0\0", "not a packet of version 1")
    begin, sets = 52 + int.from_bytes(packet[12:16], "little"), {}
    check(sha256(packet[:20] + packet[52:begin]).digest() == packet[20:52], "a damaged manifest")
    take = io.BytesIO(zlib.decompress(packet[52:begin])).read
    fields = json.loads(take(int.from_bytes(take(4), "little")))
    for key, tables in fields["sets"].items():
        contexts, symbols = (1472, 2 ** int(key[1])) if key[0] == "c" else (1, 256)
        context = np.frombuffer(take(contexts), np.uint8)
        levels = np.frombuffer(take(tables * symbols), np.uint8).reshape(tables, symbols)
        sets[key] = context, expand(levels)
    members = {one["name"]: one for one in fields["members"]}
    headers = {name: take(one["header"][0]) for name, one in members.items()}
    for row in (row for one in members.values() for row in one["sections"]):
        row[2:], begin = [packet[begin:begin + row[0]], take(32)], begin + row[0]
        check(sha256(row[2]).digest() == row[3], "a section is damaged")
    check(begin == len(packet), "the packet has another length")
    near, at = {(tuple(kernel), kind): row for kernel, kind, *row in fields["near"]}, 0
    one = members[only or next(iter(members))]
    inside = [name for name, other in members.items() if other["id"] == one["base"]]
    base = unpack(packet, base, inside[0]) if inside else base
    check(one["base"] in (None, base and base.id()), f"a difference to {one['base']}")
    words = zlib.decompressobj(-15, base.words if one["base"] else b"")
    network = Network(words.decompress(headers[one["name"]]))
    for _, units, data, _ in one["sections"]:
        section(Coder(data), network, base, sets, near, one, range(at, at + units))
        at += units
    if network.layers:
        network.tensors["codes"][2] = b"".join(network.packed[name] for name in network.layers)
    check(network.id() == one["id"], "another network came out")
    return network
def load(path):
    with open(path, "rb") as file:
        return Network(file.read(int.from_bytes(file.read(8), "little")), file.read())

if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        result = unpack(file.read(), *map(load, sys.argv[3:4]), *sys.argv[4:])
    with open(sys.argv[2] + ".part", "wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(result.header)) + result.header)
        file.write(b"".join(tensor[2] for tensor in result.tensors.values()))
        os.fsync(file.fileno())
    os.replace(sys.argv[2] + ".part", sys.argv[2])
