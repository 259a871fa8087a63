"""Networks sent in few bytes: whole, as differences and as families, and what damage does.

python results/benchmarks/updates.py --base BASE --target TARGET --data cifar10:DIR

Writes results/reference/updates.json section by section, and leaves out sections that stand there,
so that it can be stopped and started again. BASE and TARGET are float weights of one ResNet-20: the
public checkpoint for CIFAR-10 (MIT-licensed, akamaster/pytorch_resnet_cifar10), and the same after
20 epochs on images that were encoded as JPEG. Networks of our own searches are made in --folder by
``haq search --budget avg_weight_bits=N --agent ilp`` and ``haq export``, and used again if they are
there; so are short fine-tunings. Codes of "per tensor" have one step a tensor, that of its largest
weight, and an offset of .4, as in published figures of such coders. zstandard, bsdiff4, zipnn and
constriction are compared with where they are installed; nothing else needs them. Accuracies are of
the first 2 000 test images.
"""

import argparse
import importlib
import json
import lzma
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

import haq
from haq.datasets import load
from haq.formats import sparse
from haq.formats.coder import rans, tables
from haq.formats.packing import pack
from haq.formats.update import entropies, family, packet, quantizer
from haq.formats.update.network import Network, floats, parse
from haq.formats.update.packet import Sent
from haq.models.weights import load_weights, save_weights
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.float_network import fresh_model
from haq.training.scoring import score
from haq.training.train import train

STEPS = 150
TESTED = 2000

parser = argparse.ArgumentParser()
parser.add_argument("--base", required=True)
parser.add_argument("--target", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--folder", type=Path, default=Path("results/updates"))
parser.add_argument("--seed", type=int, default=0)


class Subject:
    """The networks of the benchmark, and the images they are tested on."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        asked.folder.mkdir(parents=True, exist_ok=True)
        self.data = load(asked.data)
        self.test = Some(self.data.test, range(TESTED))
        self.base = self.float_file("base", asked.base)
        self.target = self.float_file("target", asked.target)

    def model(self, weights):
        """Return the network with the weights of a file."""
        model = fresh_model("resnet20", self.data, width=1.0, seed=0)
        load_weights(model, weights)
        return model.eval()

    def float_file(self, name, weights) -> Network:
        """Return a float network as a safetensors file."""
        path = self.asked.folder / f"{name}.safetensors"
        if not path.exists():
            save_weights(self.model(weights), path)
        return parse(path.read_bytes())

    def searched(self, name, weights, bits) -> Network:
        """Return the checkpoint of a search of ours."""
        path = self.asked.folder / f"{name}{bits}.safetensors"
        if not path.exists():
            run = haq.search(
                "resnet20", self.asked.data, weights=weights, agent="ilp",
                budgets=[f"avg_weight_bits={bits}"], out=self.asked.folder / f"{name}{bits}",
            )  # fmt: skip
            haq.export_checkpoint(run, path)
        return parse(path.read_bytes())

    def tuned(self, name, start: Network, split, seed) -> Network:
        """Return a network after a short fine-tuning."""
        path = self.asked.folder / f"{name}.safetensors"
        if not path.exists():
            begin = self.asked.folder / "start.safetensors"
            begin.write_bytes(start.file())
            model = self.model(begin)
            train(model, split, epochs=1, lr=0.01, seed=seed)
            save_weights(model, path)
        return parse(path.read_bytes())

    def accuracy(self, network: Network) -> float:
        """Return the accuracy of a float network on test images."""
        path = self.asked.folder / "scored.safetensors"
        path.write_bytes(network.file())
        return score(self.model(path), self.test).accuracy


class Some:
    """Some images of a split, with other labels and changed pixels if asked."""

    def __init__(self, split, index, relabel=None, change=None) -> None:
        self.split, self.index = split, torch.as_tensor(list(index))
        self.relabel, self.change = relabel, change

    @property
    def labels(self):
        """Of these images."""
        return self.split.labels[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, index, generator=None):
        """Return images and labels."""
        images, labels = self.split.batch(self.index[index], generator)
        images = images if self.change is None else self.change(images, index)
        return images, labels if self.relabel is None else self.relabel(labels, index)


def convolutions(network: Network) -> dict[str, np.ndarray]:
    """Return the weights that are quantized: convolutions and the linear layer."""
    return {
        name.removesuffix(".weight"): floats(t.data).reshape(t.shape)
        for name, t in network.tensors.items()
        if len(t.shape) > 1
    }


def codes(network: Network, bits: int, per_tensor: bool = True) -> Network:
    """Return a checkpoint of a float network's weights, and nothing else."""
    return coded(convolutions(network), bits, per_tensor)


def coded(weights, bits, per_tensor=True, cheapest=False) -> Network:
    """Return a checkpoint of weights, its codes whole or each layer's in the cheapest format."""
    scales, parts, rows, codings = [], [], [], {}
    top = 2 ** (bits - 1) - 1
    for name, w in weights.items():
        largest = np.abs(w).max() if per_tensor else np.abs(w).reshape(len(w), -1).max(1)
        step = np.atleast_1d(np.where(largest > 0, largest / top, 1)).astype(np.float32)
        along = step.reshape(-1, *[1] * (w.ndim - 1))
        size = np.floor(np.abs(w) / along + (0.4 if per_tensor else 0.5))
        z = (np.sign(w) * np.minimum(size, top)).astype(np.int32)
        scales.append(step)
        coding, data = "dense", pack(z, bits)
        if cheapest:
            coding, data = sparse.encode(z.astype(np.int8), bits)
        if coding != "dense":
            codings[name] = [coding, len(data)]
        parts.append(np.frombuffer(data, np.uint8))
        rows.append([name, list(w.shape), bits, 8, len(step)])
    tensors = {"scales": np.concatenate(scales), "codes": np.concatenate(parts)}
    header, at = {}, 0
    about = {
        "format": "haq-checkpoint/1",
        "layers": rows,
        **({"codings": codings} if codings else {}),
    }
    for name, values in tensors.items():
        dtype = "F32" if name == "scales" else "U8"
        place = [at, at + values.nbytes]
        header[name] = {"dtype": dtype, "shape": [len(values)], "data_offsets": place}
        at = place[1]
    text = json.dumps({"__metadata__": {"haq": json.dumps(about)}, **header}).encode()
    data = b"".join(values.tobytes() for values in tensors.values())
    return parse(len(text).to_bytes(8, "little") + text + data)


def entropy(network: Network) -> float:
    """Return the order-0 entropy of a checkpoint's codes, layer by layer, in bytes."""
    return sum(entropies.order0(network.codes(name)) for name in network.layers) / 8


def count(network: Network) -> int:
    """Return how many codes a checkpoint has."""
    return sum(layer.values for layer in network.layers.values())


def size(new: Network, base: Network | None = None, bits: int | None = None) -> int:
    """Return the bytes of a packet."""
    return len(packet.write([Sent("new", new, base)], bits))


def sent(new: Network, base: Network | None = None, bits: int | None = None):
    """Return the bytes of a packet, and what it gives back."""
    data = packet.write([Sent("new", new, base)], bits)
    return len(data), packet.read(data, base)


def single(subject: Subject) -> Iterator[dict]:
    """One network: bytes beside the entropy of its codes."""
    known = {f"per tensor, {b} bits": codes(subject.target, b) for b in (8, 6, 4, 3, 2)}
    known |= {f"per channel, {b} bits": codes(subject.target, b, False) for b in (8, 6, 4, 3, 2)}
    for bits in (6, 4, 3):
        known[f"search, {bits} bits on average"] = subject.searched(
            "jpg", subject.asked.target, bits
        )
    for name, network in known.items():
        whole, rest = size(network), network.outline.bytes - network.tensors["codes"].data.size
        yield {
            "network": name, "file": len(network.file()), "packet": whole,
            "order-0 entropy of codes": round(entropy(network)), "other tensors": rest,
            "packet without other tensors, of the entropy":
                round((whole - rest) / entropy(network), 4),
            "bits a weight": round(8 * whole / count(network), 3),
        }  # fmt: skip


def sequential(subject: Subject) -> Iterator[dict]:
    """A quantized network from the float one before it, exactly."""
    for bits in (8, 6, 4, 3):
        new = codes(subject.target, bits)
        direct, apart = size(new), size(new, subject.base)
        held = size(new, codes(subject.base, bits))
        yield {
            "codes": f"per tensor, {bits} bits", "order-0 entropy": round(entropy(new)),
            "direct": direct, "from the float base": apart, "from the quantized base": held,
            "saved of order-0": round(1 - apart / entropy(new), 4),
            "saved of direct": round(1 - apart / direct, 4),
        }  # fmt: skip
    pairs = [
        ("base", 4, "jpg", 4),
        ("base", 6, "jpg", 6),
        ("jpg", 6, "jpg", 4),
        ("jpg", 3, "jpg", 4),
    ]
    for old, old_bits, new, new_bits in pairs:
        weights = {"base": subject.asked.base, "jpg": subject.asked.target}
        held = subject.searched(old, weights[old], old_bits)
        wanted = subject.searched(new, weights[new], new_bits)
        direct, apart = size(wanted), size(wanted, held)
        yield {
            "codes": f"searches, {old} at {old_bits} bits to {new} at {new_bits}",
            "order-0 entropy": round(entropy(wanted)), "direct": direct, "from the base": apart,
            "saved of direct": round(1 - apart / direct, 4),
        }  # fmt: skip


def rounded(subject: Subject) -> Iterator[dict]:
    """A float network from the one before it, its weights rounded."""
    for bits in (8, 6, 5, 4, 3):
        direct, alone = sent(subject.target, None, bits)
        apart, network = sent(subject.target, subject.base, bits)
        yield {
            "bits": bits, "direct": direct, "difference": apart,
            "accuracy direct": subject.accuracy(alone), "accuracy": subject.accuracy(network),
        }  # fmt: skip
    yield {"exact": size(subject.target), "difference": size(subject.target, subject.base)}


def chain_of(subject: Subject) -> list[Network]:
    """Return the base and five networks, each fine-tuned a little from the one before it."""
    networks = [subject.base]
    for number in range(5):
        index = range(number * 9000, number * 9000 + 9000)
        split = Some(subject.data.train, index)
        networks.append(subject.tuned(f"chain{number + 1}", networks[-1], split, number))
    return networks


def chain(subject: Subject) -> Iterator[dict]:
    """Five updates in a row, each from what the one before it gave.

    "as the sender has it" says that who received all of them holds, bit for bit, what the sender
    predicts the next one from: errors cannot add up unseen.
    """
    for bits in (6, 4):
        networks = chain_of(subject)
        held = received = packet.rounded(networks[0], bits)
        for number, network in enumerate(networks[1:], 1):
            direct, alone = sent(network, None, bits)
            data = packet.write([Sent("new", network, held)], bits)
            apart, held = len(data), packet.read(data, held)
            received = parse(packet.read(data, received).file())  # as a device that reads its file
            yield {
                "bits": bits, "update": number, "direct": direct, "difference": apart,
                "as the sender has it": received.file() == held.file(),
                "error": error(network, held), "error direct": error(network, alone),
                "accuracy": subject.accuracy(held), "accuracy direct": subject.accuracy(alone),
            }  # fmt: skip


def exact_chain(subject: Subject) -> Iterator[dict]:
    """The same five updates as exact codes of 4 bits: the last network is the one sent alone."""
    networks = [codes(network, 4) for network in chain_of(subject)]
    held = networks[0]
    for number, (old, new) in enumerate(pairwise(networks), 1):
        data = packet.write([Sent("new", new, old)])
        held = packet.read(data, held)
        yield {
            "bits": 4, "update": number, "direct": size(new), "difference": len(data),
            "equal to the one sent": held.file() == new.file(),
        }  # fmt: skip


def noise(subject: Subject) -> Iterator[dict]:
    """Accuracies of the last network of the chain, rounded to the 4-bit grid in other ways.

    Each weight goes down or up to a neighbouring step at random, to the nearer one more often: no
    difference is involved, and the errors are as large as those of the chain or larger.
    """
    network = chain_of(subject)[-1]
    for seed in range(6):
        numbers = np.random.default_rng(seed)

        def change(_, w, numbers=numbers):
            step = quantizer.step_of(w, 4)
            dither = numbers.uniform(-0.25, 0.25, w.shape)
            return np.rint(w / step + dither).clip(-7, 7).astype(np.float32) * step

        rounded_network = with_weights(network, change)
        yield {
            "bits": 4, "seed": seed, "error": error(network, rounded_network),
            "accuracy": subject.accuracy(rounded_network),
        }  # fmt: skip


def error(network: Network, other: Network) -> float:
    """Return the root of the mean squared error of the weights, in steps of 6 bits."""
    one, two = convolutions(network), convolutions(other)
    parts = [((one[n] - two[n]) / quantizer.step_of(one[n], 6)).ravel() for n in one]
    return round(float(np.sqrt((np.concatenate(parts) ** 2).mean())), 4)


def intervals(subject: Subject) -> Iterator[dict]:
    """The same network from ever older predecessors."""
    networks = chain_of(subject)
    for bits in (8, 6):
        new = codes(networks[-1], bits)
        direct = size(new)
        for age in (1, 2, 3, 4, 5):
            apart = size(new, codes(networks[-1 - age], bits))
            share = round(apart / direct, 4)
            yield {"bits": bits, "fine-tunings between": age, "bytes": apart, "of direct": share}


def with_weights(network: Network, change) -> Network:
    """Return a float network, its quantized weights changed by a function of name and values."""
    header, data = network.header, b""
    for name, tensor in network.tensors.items():
        if len(tensor.shape) > 1:
            values = change(name.removesuffix(".weight"), floats(tensor.data).reshape(tensor.shape))
            data += values.astype("<f4").tobytes()
        else:
            data += tensor.data.tobytes()
    return parse(len(header).to_bytes(8, "little") + header + data)


def to_bits(bits):
    """Return what rounds weights to so many bits, a step a tensor."""
    top = 2 ** (bits - 1) - 1

    def change(w):
        step = float(quantizer.step_of(w, bits))
        return quantizer.quantize(w, step, 0.5, top) * np.float32(step)

    return change


def pruned(share):
    """Return what sets this share of the weights to zero, the smallest ones."""
    return lambda w: np.where(np.abs(w) > np.quantile(np.abs(w), share), w, np.float32(0))


def damaged(subject: Subject) -> Iterator[dict]:
    """A target from predecessors that were rounded, pruned or wiped out."""
    damages = {f"{bits} bits": to_bits(bits) for bits in (8, 6, 5, 4, 3, 2)}
    damages |= {"50 % pruned": pruned(0.5), "80 % pruned": pruned(0.8), "zeros": lambda w: 0 * w}
    for bits in (6, 4):
        direct = size(subject.target, None, bits)
        for name, change in {"as it is": lambda w: w, **damages}.items():
            held = with_weights(subject.base, lambda _, w, change=change: change(w))
            apart, network = sent(subject.target, held, bits)
            yield {
                "bits": bits, "predecessor": name, "its accuracy": subject.accuracy(held),
                "bytes": apart, "of direct": round(apart / direct, 4),
                "accuracy": subject.accuracy(network),
            }  # fmt: skip


def both_pruned(subject: Subject) -> Iterator[dict]:
    """Predecessor and target both pruned, exact codes."""
    for share in (0.5, 0.8):
        for bits in (6, 4):
            old, new = (
                coded({n: pruned(share)(w) for n, w in convolutions(each).items()}, bits)
                for each in (subject.base, subject.target)
            )
            direct, apart = size(new), size(new, old)
            yield {
                "pruned": share, "bits": bits, "direct": direct, "difference": apart,
                "of direct": round(apart / direct, 4),
            }  # fmt: skip


def sparse_files(subject: Subject) -> Iterator[dict]:
    """Checkpoints whose codes are written in the cheapest format of pruned layers, exactly."""
    for share in (0.5, 0.8, 0.95):
        for bits in (6, 4):
            old, new = (
                coded(
                    {n: pruned(share)(w) for n, w in convolutions(each).items()}, bits, True, True
                )
                for each in (subject.base, subject.target)
            )
            formats = Counter(layer.coding for layer in new.layers.values())
            yield {
                "pruned": share, "bits": bits, "formats": dict(formats), "file": len(new.file()),
                "direct": size(new), "difference": size(new, old),
            }  # fmt: skip


def rotated(images, index):
    """Return images turned by as many quarters as the last two bits of their index say."""
    turned = [torch.rot90(x, int(i) % 4, (1, 2)) for x, i in zip(images, index, strict=True)]
    return torch.stack(turned)


def relatives(subject: Subject) -> dict[str, Network]:
    """Return five networks, each fine-tuned from the base to something of its own."""
    train_split, many = subject.data.train, STEPS * 128
    labels = train_split.labels
    few = [i for i, label in enumerate(labels.tolist()) if label < 5][:many]
    generator = torch.Generator().manual_seed(subject.asked.seed)
    noise = 0.3 * torch.randn((1, *subject.data.shape), generator=generator)
    kinds = {
        "images": Some(train_split, range(many)),
        "half of the classes": Some(train_split, few),
        "vehicles": Some(train_split, range(many), lambda y, _: ((y < 2) | (y > 7)).long()),
        "rotations": Some(train_split, range(many), lambda _, i: i % 4, rotated),
        "noise": Some(train_split, range(many), None, lambda x, _: x + noise),
    }  # fmt: skip
    return {
        name: subject.tuned(name.replace(" ", "-"), subject.base, split, number)
        for number, (name, split) in enumerate(kinds.items())
    }


def families(subject: Subject) -> Iterator[dict]:
    """Five fine-tuned relatives in one file."""
    members = relatives(subject)
    for bits in (8, 6, 4):
        kinds = {
            "exact codes, per tensor": ({n: codes(m, bits) for n, m in members.items()}, None),
            "rounded float networks": (members, bits),
        }
        for kind, (networks, rounding) in kinds.items():
            data, tried = family.write(networks, bits=rounding)
            alone = sum(size(network, None, rounding) for network in networks.values())
            yield {
                "bits": bits, "kind": kind, "family": len(data), "sum of direct": alone,
                "of direct": round(len(data) / alone, 4),
                "roots": {
                    root.name: [root.size, round(root.divergence, 4), root.shared]
                    for root in tried
                },
            }  # fmt: skip


def optional(name):
    """Return a module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def rivals(new: bytes, old: bytes, floating: bool) -> dict[str, int]:
    """Return what other tools make of a file, alone and given the old one."""
    sizes = {
        "safetensors as it is": len(new),
        "lzma -9e": len(lzma.compress(new, preset=9 | 2**31)),
    }
    zstd, bsdiff = optional("zstandard"), optional("bsdiff4")
    if zstd:
        sizes["zstd -19"] = len(zstd.ZstdCompressor(level=19).compress(new))
        words = zstd.ZstdCompressionDict(old, dict_type=zstd.DICT_TYPE_RAWCONTENT)
        known = zstd.ZstdCompressor(level=19, dict_data=words).compress(new)
        sizes["zstd -19, old file as dictionary"] = len(known)
    if bsdiff:
        sizes["bsdiff"] = len(bsdiff.diff(old, new))
    zipnn = optional("zipnn")
    if zipnn and floating:
        options = {"input_format": "byte", "bytearray_dtype": "float32"}
        sizes["zipnn"] = len(zipnn.ZipNN(**options).compress(bytearray(new)))
        delta = zipnn.ZipNN(**options, delta_compressed_type="byte")
        known = delta.compress(bytearray(new), delta_second_data=bytearray(old))
        sizes["zipnn, old file as delta"] = len(known)
    return sizes


def compared(subject: Subject) -> Iterator[dict]:
    """The same files by other tools."""
    weights = {"base": subject.asked.base, "jpg": subject.asked.target}
    pairs = {
        f"searches at {bits} bits": tuple(
            subject.searched(name, weights[name], bits) for name in ("base", "jpg")
        )
        for bits in (6, 4)
    }
    pairs["float"] = (subject.base, subject.target)
    near = chain_of(subject)
    pairs["float, one short fine-tuning"] = (near[4], near[5])
    for name, (old, new) in pairs.items():
        yield {
            "pair": name, "haq pack": size(new), "haq pack --base": size(new, old),
            **({"haq pack --bits 8 --base": size(new, old, 8)} if "float" in name else {}),
            **rivals(new.file(), old.file(), "float" in name),
        }  # fmt: skip


def one_bit(subject: Subject) -> Iterator[dict]:
    """BitDelta's rule on our pairs, without its distillation, beside differences of few bits.

    Each difference of a weight becomes its sign times their mean size in the tensor: a bit a weight
    and a number a tensor. Other tensors are sent exactly, and are not counted here.
    """
    near = chain_of(subject)
    pairs = {"20 epochs": (subject.base, subject.target), "one short fine-tuning": near[4:6]}
    for name, (old, new) in pairs.items():
        known, wanted = convolutions(old), convolutions(new)
        rest = sum(t.data.size for t in new.tensors.values() if len(t.shape) < 2)
        signs = {
            n: known[n] + np.sign(w - known[n]) * np.float32(np.abs(w - known[n]).mean())
            for n, w in wanted.items()
        }
        rebuilt = with_weights(new, lambda n, _, signs=signs: signs[n])
        row = {
            "pair": name, "accuracy of the old": subject.accuracy(old),
            "accuracy of the new": subject.accuracy(new),
            "sign and mean, bytes": sum(-(-w.size // 8) + 4 for w in wanted.values()),
            "sign and mean, accuracy": subject.accuracy(rebuilt),
        }  # fmt: skip
        for bits in (4, 3):
            apart, network = sent(new, old, bits)
            row[f"--bits {bits}, bytes"] = apart - rest
            row[f"--bits {bits}, accuracy"] = subject.accuracy(network)
        yield row


def published(_: Subject) -> Iterator[dict]:
    """What others report, on other networks: not comparable number by number."""
    yield {
        "method": "ZipNN", "source": "arXiv:2411.05239, abstract", "task": "exact float files",
        "reported": "often saving 33 %, at times over 50 %, of popular models",
    }  # fmt: skip
    yield {
        "method": "BitDelta", "source": "arXiv:2402.10193, abstract",
        "task": "differences of fine-tuned language models in 1 bit a weight, not exact",
        "reported": "more than 10 times less GPU memory than 16-bit networks",
    }  # fmt: skip


def speed(subject: Subject) -> Iterator[dict]:
    """CPU seconds of one thread; megabytes are those of the weights as float32."""
    numbers = np.random.default_rng(0)
    wide = {"conv": numbers.laplace(0, 1, (512, 512, 3, 3)).astype(np.float32)}
    wide |= {"linear": numbers.laplace(0, 1, (1024, 1024)).astype(np.float32)}
    near = {n: w + numbers.laplace(0, 0.2, w.shape).astype(np.float32) for n, w in wide.items()}
    old, new = (
        subject.searched(name, weights, 4)
        for name, weights in (("base", subject.asked.base), ("jpg", subject.asked.target))
    )
    large = coded(wide, 4)
    known = {
        "resnet20, search at 4 bits": (new, None),
        "resnet20, difference": (new, old),
        "3.4 million random weights, 4 bits": (large, None),
        "3.4 million, difference": (large, coded(near, 4)),
    }
    for name, (network, base) in known.items():
        data = packet.write([Sent("new", network, base)])
        packing = min(spent(packet.write, [Sent("new", network, base)]) for _ in range(3))
        reading = min(spent(packet.read, data, base) for _ in range(7))
        row = {
            "network": name, "weights": count(network), "pack seconds": round(packing, 4),
            "unpack seconds": round(reading, 4),
            "MB of float32 a second": round(4e-6 * count(network) / reading, 1),
        }  # fmt: skip
        yield row | (coders(network) if base is None else {})


def coders(network: Network) -> dict[str, float]:
    """Return the speed and size of order-0 coders on the codes of a network, as one string."""
    z = np.concatenate([network.codes(n).ravel() for n in network.layers]).astype(np.int64)
    z -= z.min()
    counts = np.bincount(z)
    shares = tables.frequencies(tables.levels_of(counts))
    runs = [(z, np.zeros(len(z), np.int64))]
    states, words = rans.encode(runs, [shares], 1024)
    entries = tables.expanded([shares])
    own = min(spent(lambda: rans.Decoder(states, words).run(runs[0][1], entries)) for _ in range(7))
    few, its = rans.encode(runs, [shares], 64)
    row = {
        "own rANS, order 0, 1024 lanes, MB a second": round(4e-6 * len(z) / own, 1),
        "own rANS, order 0, 64 lanes, bytes": 4 * len(few) + 2 * len(its),
    }
    constriction = optional("constriction")
    if constriction:
        model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(z.astype(np.int32), model)
        words = coder.get_compressed()

        def decode():
            constriction.stream.stack.AnsCoder(words).decode(model, len(z))

        other = min(spent(decode) for _ in range(7))
        row["constriction, order 0, MB a second"] = round(4e-6 * len(z) / other, 1)
        row["constriction, order 0, bytes"] = 4 * len(words)
    return row


def spent(function, *arguments) -> float:
    """Return the CPU seconds of a call."""
    started = time.process_time()
    function(*arguments)
    return time.process_time() - started


SECTIONS = {
    "single": single, "sequential": sequential, "speed": speed, "published": published,
    "both pruned": both_pruned, "rounded": rounded, "damaged": damaged, "chain": chain,
    "intervals": intervals, "family": families, "compared": compared,
    "one bit": one_bit, "exact chain": exact_chain, "noise": noise, "sparse files": sparse_files,
}  # fmt: skip


def main() -> None:
    """Measure every section that is not there."""
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = REFERENCE / "updates.json"
    record = results.read_json(path) if path.exists() else {}
    subject = Subject(asked)
    about = {
        "what": __doc__.splitlines()[0], "data": subject.data.name, "seed": asked.seed,
        "test images": TESTED, "unit": "bytes", **script_provenance(),
    }  # fmt: skip
    for name, measure in SECTIONS.items():
        if name in record.get("sections", {}):
            continue
        started = time.process_time()
        rows = []
        for row in measure(subject):
            rows.append(row)
            print(name, row, flush=True)
        spent_here = round(time.process_time() - started, 1)
        sections = record.get("sections", {}) | {name: {
            "what": measure.__doc__, "cpu_seconds": spent_here, "rows": rows,
        }}  # fmt: skip
        record = about | {"sections": sections}
        results.write_json(path, record)


if __name__ == "__main__":
    main()
