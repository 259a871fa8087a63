"""Fuzz the packets of docs/updates.md for as long as asked.

python tests/tools/fuzz_updates.py --minutes 10

Packets of all kinds are changed at random and their digests made right again, so that what lies
behind these checks is met. The library must give the network that was packed or refuse with an
UpdateError; the device's decoder must give that network or raise. Anything else ends this with
exit code 1 and leaves the packet as a file.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
import update_forging as forging

from haq.formats.update import device

parser = argparse.ArgumentParser()
parser.add_argument("--minutes", type=float, default=10)
parser.add_argument("--seed", type=int, default=0)


def carried(data, base):
    """Return the id that the device's decoder ends with, or the kind of what it raised."""
    held = base and device.load(base.file())
    try:
        return device.unpack(data, held).id()
    except Exception as error:
        return type(error).__name__


def main() -> None:
    """Fuzz until the time is over."""
    asked = parser.parse_args()
    examples = forging.examples()
    until = time.monotonic() + 60 * asked.minutes
    seed, outcomes = asked.seed, Counter()
    while time.monotonic() < until:
        numbers = np.random.default_rng(seed)
        data, base, wanted = examples[seed % len(examples)]
        data = forging.mutated(data, numbers)
        if seed % 3 == 0:
            data = forging.mutated(data, numbers) if forging.is_whole(data) else data
        try:
            got = forging.outcome(data, base)
            fault = got != wanted and " " not in got
        except Exception as error:
            got, fault = repr(error), True
        other = carried(data, base)
        fault |= len(other) == 64 and other != wanted
        if fault:
            Path(f"fault-{seed}.haqz").write_bytes(data)
            sys.exit(f"seed {seed}: library {got!r}, device {other!r}; see fault-{seed}.haqz")
        outcomes["the network" if got == wanted else got[:40]] += 1
        seed += 1
    print(f"{seed - asked.seed} packets, none taken for what it is not")
    for sentence, count in outcomes.most_common(30):
        print(f"{count:8} {sentence}")


if __name__ == "__main__":
    main()
