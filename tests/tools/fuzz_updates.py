"""Fuzz the packets of docs/updates.md for as long as asked, guided by the code that they reach.

python tests/tools/fuzz_updates.py --minutes 10

Packets of all kinds are changed and their digests made right again, so that what lies behind these
checks is met: what reaches new lines of the reader is changed further (atheris, a libFuzzer for
Python, where it is installed; otherwise at random, which is said). The library must give the
network that was packed or refuse with an UpdateError; the device's decoder must give that network
or raise. Anything else ends this with exit code 1 and leaves the packet as a file.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
GUIDED = "--guided"  # what this script calls itself with, for libFuzzer ends the process it is in

if sys.argv[1:2] == [GUIDED]:
    import atheris

    with atheris.instrument_imports(include=["haq.formats"]):
        import update_forging as forging

        from haq.formats.update import device
else:
    import update_forging as forging

    from haq.formats.update import device

LONGEST = 2**16
"""Bytes of a packet at most; the examples have some 2000."""


def carried(data, base):
    """Return the id that the device's decoder ends with, or the kind of what it raised."""
    held = base and device.load(base.file())
    try:
        return device.unpack(data, held).id()
    except Exception as error:
        return type(error).__name__


def fault(data, base, wanted):
    """Return what is wrong with how a packet is read, and what became of it."""
    try:
        got = forging.outcome(data, base)
        wrong = got != wanted and " " not in got
    except Exception as error:
        got, wrong = repr(error), True
    other = carried(data, base)
    wrong |= len(other) == 64 and other != wanted
    return f"library {got!r}, device {other!r}" if wrong else None, got


def save(data):
    """Leave a packet as a file, and return its name."""
    path = Path(f"fault-{hashlib.sha256(data).hexdigest()[:12]}.haqz")
    path.write_bytes(data)
    return path


def guided(minutes, seed):
    """Fuzz in this process, which libFuzzer ends. The first byte of an input says its example."""
    examples = forging.examples()

    def test(data):
        if not data:
            return
        packet, (_, base, wanted) = data[1:], examples[data[0] % len(examples)]
        wrong, _ = fault(packet, base, wanted)
        if wrong:
            raise AssertionError(f"{wrong}; see {save(packet)}")

    def mutate(data, most, number):
        numbers = np.random.default_rng(number)
        packet = data[1:]
        if data and forging.is_whole(packet) and numbers.random() < 0.9:
            packet = forging.mutated(packet, numbers)
        elif data:
            packet = atheris.Mutate(packet, most - 1)
        return (data[:1] + packet)[:most]

    with tempfile.TemporaryDirectory() as folder:
        for number, (packet, _, _) in enumerate(examples):
            (Path(folder) / str(number)).write_bytes(bytes([number]) + packet)
        options = [f"-max_total_time={60 * minutes:.0f}", f"-seed={seed}", f"-max_len={LONGEST}"]
        atheris.Setup([sys.argv[0], *options, "-verbosity=0", "-print_final_stats=1",
                       folder], test,
                      custom_mutator=mutate)  # fmt: skip
        atheris.Fuzz()


def at_random(minutes, seed):
    """Fuzz until the time is over."""
    examples, outcomes, first = forging.examples(), Counter(), seed
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        numbers = np.random.default_rng(seed)
        data, base, wanted = examples[seed % len(examples)]
        data = forging.mutated(data, numbers)
        if seed % 3 == 0:
            data = forging.mutated(data, numbers) if forging.is_whole(data) else data
        wrong, got = fault(data, base, wanted)
        if wrong:
            sys.exit(f"seed {seed}: {wrong}; see {save(data)}")
        outcomes["the network" if got == wanted else got[:40]] += 1
        seed += 1
    print(f"{seed - first} packets, none taken for what it is not")
    for sentence, count in outcomes.most_common(30):
        print(f"{count:8} {sentence}")


def main() -> None:
    """Fuzz guided by coverage where atheris is, at random elsewhere."""
    parser = argparse.ArgumentParser()
    parser.add_argument(GUIDED, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.guided:
        guided(asked.minutes, asked.seed)
    elif find_spec("atheris") is None:
        print("atheris is not installed: packets are changed at random, not guided by coverage")
        at_random(asked.minutes, asked.seed)
    else:
        own = [sys.executable, "-W", "ignore", __file__, GUIDED]
        more = ["--minutes", str(asked.minutes), "--seed", str(asked.seed)]
        sys.exit(1 if subprocess.run([*own, *more]).returncode else 0)


if __name__ == "__main__":
    main()
