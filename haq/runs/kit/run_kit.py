#!/usr/bin/env python3
"""Measure the files of a kit on this device; stop it whenever you like, it goes on where it was.

    python3 run_kit.py                                    # in ONNX Runtime, one thread
    python3 run_kit.py --threads 4
    python3 run_kit.py --command "my-runner --model {file}"  # it prints microseconds, last of all

It needs Python 3.8 and, without --command, numpy and onnxruntime. Everything that was measured
stands in measured.jsonl beside this file; take that one back.
"""

import argparse
import json
import os
import platform
import random
import shlex
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "measured.jsonl")
CALLS, SECONDS, WARM_UPS = 200, 0.25, 3
LEAST, MOST = 1e-6, 1e10  # microseconds
DRIFT = 0.1  # of the reference in a round, from which on it is said
AS_IT_WAS = ("machine", "cpu", "threads", "command", "onnxruntime")


class Refused(Exception):
    """What a device gave is no latency, or it cannot be asked."""


def in_command(command, timeout):
    """Return the function from a file to microseconds that asks a program."""
    try:
        said_so = shlex.split(command)
    except ValueError as error:
        raise Refused(f"--command {command}: {error}") from error

    def measured(path):
        words = [word.replace("{file}", path) for word in said_so]
        try:
            done = subprocess.run(words, capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise Refused(
                f"the command took more than {timeout:g} s; give --timeout if it may"
            ) from error
        except OSError as error:
            raise Refused(f"the command does not start: {error}") from error
        said = done.stdout.decode("utf-8", "replace").split()
        if done.returncode:
            last = done.stderr.decode("utf-8", "replace").strip()[-200:]
            raise Refused(f"the command ended with code {done.returncode}: {last}")
        if not said:
            raise Refused("the command printed nothing; it must print microseconds last")
        try:
            return float(said[-1]), 1
        except ValueError as error:
            text = f"the command printed {said[-1]!r}; it must print microseconds last"
            raise Refused(text) from error

    return measured


def in_onnxruntime(threads):
    """Return the function from a file to microseconds: the 10th percentile of many calls."""
    import numpy
    import onnxruntime

    alone = threads == 1 and sys.platform != "win32"
    clock = time.thread_time if alone else time.perf_counter
    kinds = {
        "tensor(float)": numpy.float32, "tensor(int64)": numpy.int64,
        "tensor(int32)": numpy.int32, "tensor(bool)": numpy.bool_,
    }  # fmt: skip

    def opened(path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(
            path,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["WeightBiasQuantization"],
        )

    def measured(path):
        try:
            session = opened(path)
            feed = {}
            for place in session.get_inputs():
                shape = [size if isinstance(size, int) else 1 for size in place.shape]
                feed[place.name] = numpy.ones(shape, kinds[place.type])
            for _ in range(WARM_UPS):
                session.run(None, feed)
        except Exception as error:  # its exceptions have no common base of their own
            raise Refused(
                f"ONNX Runtime {onnxruntime.__version__} does not run it ({error}); a newer one "
                "may, or another runtime by --command"
            ) from error
        times, until = [], time.perf_counter() + SECONDS
        while len(times) < CALLS and (len(times) < 10 or time.perf_counter() < until):
            start = clock()
            session.run(None, feed)
            times.append(1e6 * (clock() - start))
        return sorted(times)[len(times) // 10], len(times)

    return measured


def device(args):
    """Return what is known of this device."""
    about = {
        "machine": platform.machine(),
        "system": platform.system(),
        "node": platform.node(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "threads": args.threads,
        "clock_khz": clock_khz(),
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if args.command:
        about["command"] = args.command
        return about
    try:
        import numpy
        import onnxruntime
    except ImportError as error:
        raise Refused(
            f"{error}: install it with pip install onnxruntime, which brings numpy, or measure "
            "with a program of your own by --command"
        ) from error
    about["onnxruntime"], about["numpy"] = onnxruntime.__version__, numpy.__version__
    return about


def cpu_name():
    """Return the name of the processor, as well as it is known."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.split(":")[0].strip() in ("model name", "Model"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def clock_khz():
    """Return the present clock of the first core, None where nobody says."""
    try:
        with open("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def contents(path):
    """Return what is to be measured, if all of it is there."""
    try:
        with open(path, encoding="utf-8") as file:
            kit = json.load(file)
        names = sorted(kit["files"])
        reference = kit["reference"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{path} is not a kit's ({error!r}); copy the kit anew") from error
    missing = [name for name in names if not os.path.isfile(os.path.join(HERE, "files", name))]
    if missing:
        raise Refused(
            f"{len(missing)} of {len(names)} files of the kit are not there "
            f"({', '.join(missing)}); copy the kit anew, with its folder files; nothing was "
            "measured in this start"
        )
    return names, reference, {n for n in names if "shape" in kit["files"][n]}


def known_rows(path):
    """Return the rows of an earlier start; a line that was torn by a kill is taken away."""
    if not os.path.exists(path):
        return []
    with open(path, "rb") as file:
        whole = file.read()
    kept = whole[: whole.rfind(b"\n") + 1]
    rows = []
    for number, line in enumerate(kept.splitlines(), 1):
        try:
            row = json.loads(line.decode("utf-8"))
            fields = ["device"] if number == 1 else ["round", "place", "file", "us"]
            rows.append({field: row[field] for field in fields})
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(
                f"{path}, line {number} is not as this program writes it; take that line away, or "
                "the whole file"
            ) from error
    if kept != whole:
        with open(path, "wb") as file:
            file.write(kept)
    return rows


class Rows:
    """What was measured so far; each row is on the disk before the next one is measured."""

    def __init__(self, path, about):
        self.path, self.about = path, about
        first, *rows = known_rows(path) or [None]
        if first and [first["device"].get(k) for k in AS_IT_WAS] != [
            about.get(k) for k in AS_IT_WAS
        ]:
            raise Refused(f"{path} was begun on another device or with other options; take it away")
        self.begun = first is not None
        self.us = {(row["round"], row["place"]): row["us"] for row in rows}

    def add(self, number, place, name, us, calls):
        """Write a row."""
        lines = [] if self.begun else [{"device": self.about}]
        row = {"round": number, "place": place, "file": name, "us": us, "calls": calls}
        khz = clock_khz()
        lines.append(row if khz is None else dict(row, clock_khz=khz))
        try:
            with open(self.path, "a", encoding="utf-8") as out:
                out.write("".join(json.dumps(line) + "\n" for line in lines))
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise Refused(f"{self.path} cannot be written ({error.strerror})") from error
        self.begun = True
        self.us[number, place] = us


def measure_round(number, order, rows, measured):
    """Measure what a round lacks."""
    for place, name in enumerate(order):
        if (number, place) in rows.us:
            continue
        try:
            us, calls = measured(os.path.join(HERE, "files", name))
            if not LEAST <= us <= MOST:
                raise Refused(f"it takes {us!r} us, which is no latency")
        except Refused as error:
            raise Refused(
                f"files/{name}: {error}; what was measured is kept, so mend it and start again"
            ) from error
        rows.add(number, place, name, us, calls)


def check_round(number, order, rows, alone):
    """Refuse a round in which all layers take the same; say if the reference drifted."""
    times = {rows.us[number, place] for place, name in enumerate(order) if name in alone}
    if len(alone) > 1 and len(times) == 1:
        raise Refused(
            f"round {number + 1}: each of {len(alone)} layers takes {times.pop():g} us, so it is "
            f"not the layer that was measured; mend the command, take {OUT} away and start again"
        )
    first, last = rows.us[number, 0], rows.us[number, len(order) - 1]
    print(f"round {number + 1}: {order[0]} {first:,.1f} us first, {last:,.1f} us last", flush=True)
    if abs(last / first - 1) > DRIFT:
        print(
            f"  that is {last / first - 1:+.0%}: the device changes its speed, or was busy; if it "
            "stays so the figures will be refused: cool it, or fix its clock",
            flush=True,
        )


def arguments():
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--command", help="a program that prints microseconds for {file}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="how often each file is measured")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of one call")
    args = parser.parse_args()
    if args.command and "{file}" not in args.command:
        parser.error(f"--command {args.command}: it needs {{file}} where the file's name goes")
    if args.threads < 1 or args.rounds < 1 or not args.timeout > 0:
        parser.error("--threads and --rounds are 1 or more, --timeout above 0")
    return args


def main():
    """Measure what is missing."""
    args = arguments()
    names, reference, alone = contents(os.path.join(HERE, "kit.json"))
    rows = Rows(OUT, device(args))
    measured = (
        in_command(args.command, args.timeout) if args.command else in_onnxruntime(args.threads)
    )
    for number in range(args.rounds):
        shuffled = list(names)
        random.Random(number).shuffle(shuffled)
        order = [reference, *shuffled, reference]
        measure_round(number, order, rows, measured)
        check_round(number, order, rows, alone)
    print(f"done; take {OUT} back")


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        sys.exit(f"run_kit: {error}")
    except KeyboardInterrupt:
        sys.exit("run_kit: stopped; what was measured is kept, so start it again to go on")
