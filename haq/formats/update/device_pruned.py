"""Checkpoints with pruned layers, weights in groups or codebooks, for device.py beside it."""
import struct
from math import prod

import numpy as np
TYPES = {"codes": "U8", "scales": "F32", "group_scales": "F16"}
def pruned(Network, Coder, expand, pack):  # what device.py has
    def signed(data, bits, count):
        z = unsigned(data, bits, count)
        return z - (z >> (bits - 1) << bits)
    def unsigned(data, bits, count):
        digits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[:count * bits]
        return digits.reshape(-1, bits).astype(np.int64) @ (1 << np.arange(bits))
    def filled(places, data, bits, count):
        z = np.zeros(count, np.int64)
        z[places] = signed(data, bits, len(places))
        return z
    def read_bitmask(data, bits, count):
        places = np.flatnonzero(unsigned(data, 1, count))
        return filled(places, data[-(-count // 8):], bits, count)
    def write_bitmask(z, bits):
        return pack(z != 0, 1) + pack(z[z != 0], bits)
    def read_coded(data, bits, count):
        zeros, lanes, words = struct.unpack_from("<HBI", data)
        end = 7 + 4 * lanes + 2 * words
        coder = Coder(struct.pack("<III", lanes, words, 0) + data[7:end])
        table = expand(np.array([[zeros, 4096 - zeros]]))
        places = np.flatnonzero(coder.run(np.zeros(count, int), table))
        coder.end()
        return filled(places, data[end:], bits, count)
    def write_coded(z, bits):
        mask, zeros = (z != 0).astype(int), int((z == 0).sum())
        share = min(max(round(4096 * zeros / max(len(z), 1)), 1), 4095)
        lanes, words = max(1, min(32, len(z) // 4096)), []
        x = np.full(lanes, 65536, np.int64)
        for start in range((len(z) - 1) // lanes * lanes, -1, -lanes):
            some = mask[start:start + lanes]
            f, begin, part = np.where(some, 4096 - share, share), share * some, x[:len(some)]
            full = part >= f << 20
            words.append(part[full] & 65535)
            part = np.where(full, part >> 16, part)
            x[:len(some)] = (part // f << 12) + part % f + begin
        stream = np.concatenate([*words[::-1], np.zeros(0, int)])
        head = struct.pack("<HBI", share, lanes, len(stream)) + x.astype("<u4").tobytes()
        return head + stream.astype("<u2").tobytes() + pack(z[mask > 0], bits)
    def read_index(data, bits, count):
        width, entries = struct.unpack_from("<BI", data)
        end = 5 - (-entries * width // 8)
        places = np.cumsum(unsigned(data[5:end], width, entries) + 1) - 1
        return filled(places, data[end:], bits, count)
    def write_index(z, bits):
        places, written = np.flatnonzero(z), []
        for width in range(2, 9):
            more, rest = np.divmod(np.diff(places, prepend=-1) - 1, 2 ** width)
            ends = np.cumsum(more + 1) - 1
            entries = int(ends[-1]) + 1 if len(ends) else 0
            gaps, values = np.full(entries, 2 ** width - 1), np.zeros(entries, int)
            gaps[ends], values[ends] = rest, z[places]
            head = struct.pack("<BI", width, entries)
            written.append(head + pack(gaps, width) + pack(values, bits))
        return min(written, key=len)
    def turned(z, bits):  # places in a codebook, from half of its size below zero up, and back
        return np.where(z < 0, z + (1 << bits - 1), z - (1 << bits - 1))
    FORMATS = {
        "dense": (signed, pack), "bitmask": (read_bitmask, write_bitmask),
        "coded mask": (read_coded, write_coded), "relative index": (read_index, write_index),
    }
    class Pruned(Network):
        def table(self, about):
            layers, at = {}, dict.fromkeys(TYPES, 0)
            for name, shape, bits, _, scales, *_ in (row for row in about["layers"] if row[2] <= 8):
                dense, known = -(-prod(shape) * bits // 8), about.get("formats", {})
                block = known.get(name, [0])[0]
                coding, size = about.get("codings", {}).get(name, ["dense", dense])
                parts = [("codes", size), ("group_scales" if block > 0 else "scales", scales)]
                place, some = (slice(at[tensor], at[tensor] + count) for tensor, count in parts)
                layers[name] = shape, bits, place, some, coding, block
                at.update({tensor: at[tensor] + count for tensor, count in parts})
            known = (self.tensors.get(n, [t, [0]])[:2] == [t, [at[n]]] for n, t in TYPES.items())
            formats = {layer[4] for layer in layers.values()}
            return layers if all(known) and formats <= {*FORMATS} else {}
        def codes(self, name):
            shape, bits, place, _, coding, block = self.layers[name]
            data = self.tensors["codes"][2][place]
            z = FORMATS[coding][0](data, bits, prod(shape)).reshape(shape)
            return turned(z, bits) if block == -1 else z
        def steps(self, name):
            shape, _, _, some, _, block = self.layers[name]
            if not block:
                scales = self.floats("scales").ravel()[some]
                return np.repeat(scales, prod(shape) // len(scales)).reshape(shape)
            scales = np.frombuffer(self.tensors["group_scales"][2], "<f2")[some].astype("f4")
            return np.repeat(scales.reshape(shape[0], -1), block, 1)[:, :shape[1]]
        def bytes(self, name):
            _, bits, _, _, coding, block = self.layers[name]
            z = turned(self.packed[name], bits) if block == -1 else self.packed[name]
            return FORMATS[coding][1](z.ravel(), bits)
    return Pruned
