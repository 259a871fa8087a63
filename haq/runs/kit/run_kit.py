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
import math
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


class Refused(Exception):
    """What a device gave is no latency."""


def in_command(command, timeout):
    """Return the function from a file to microseconds that asks a program."""

    def measured(path):
        words = [word.replace("{file}", path) for word in shlex.split(command)]
        try:
            done = subprocess.run(words, capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise Refused(f"the command took more than {timeout:g} s") from error
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

    def measured(path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            path,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["WeightBiasQuantization"],
        )
        kinds = {
            "tensor(float)": numpy.float32, "tensor(int64)": numpy.int64,
            "tensor(int32)": numpy.int32, "tensor(bool)": numpy.bool_,
        }  # fmt: skip
        feed = {}
        for place in session.get_inputs():
            shape = [size if isinstance(size, int) else 1 for size in place.shape]
            feed[place.name] = numpy.ones(shape, kinds[place.type])
        for _ in range(WARM_UPS):
            session.run(None, feed)
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
    }
    if args.command:
        about["command"] = args.command
    else:
        import onnxruntime

        about["onnxruntime"] = onnxruntime.__version__
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


def known_rows(path):
    """Return the rows of an earlier start; a line that was torn by a kill is taken away."""
    if not os.path.exists(path):
        return []
    with open(path, "rb") as file:
        whole = file.read()
    kept = whole[: whole.rfind(b"\n") + 1]
    if kept != whole:
        with open(path, "wb") as file:
            file.write(kept)
    return [json.loads(line) for line in kept.decode("utf-8").splitlines()]


def main():
    """Measure what is missing."""
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
    if args.threads < 1 or args.rounds < 1:
        parser.error("--threads and --rounds are 1 or more")
    with open(os.path.join(HERE, "kit.json")) as file:
        kit = json.load(file)
    rows, about = known_rows(OUT), device(args)
    same = ("machine", "cpu", "threads", "command", "onnxruntime")
    if rows and [rows[0]["device"].get(k) for k in same] != [about.get(k) for k in same]:
        sys.exit(f"run_kit: {OUT} was begun on another device or with other options; take it away")
    done = {(row["round"], row["place"]) for row in rows[1:]}
    measured = (
        in_command(args.command, args.timeout) if args.command else in_onnxruntime(args.threads)
    )
    for number in range(args.rounds):
        names = sorted(kit["files"])
        random.Random(number).shuffle(names)
        order = [kit["reference"], *names, kit["reference"]]
        for place, name in enumerate(order):
            if (number, place) in done:
                continue
            try:
                us, calls = measured(os.path.join(HERE, "files", name))
                if not (math.isfinite(us) and us > 0):
                    raise Refused(f"it takes {us!r} us, which is no latency")
            except Refused as error:
                sys.exit(
                    f"run_kit: files/{name}: {error}; what was measured is kept, so mend it and "
                    "start again"
                )
            lines = [] if rows else [{"device": about}]
            lines.append({"round": number, "place": place, "file": name, "us": us, "calls": calls})
            with open(OUT, "a") as out:
                out.write("".join(json.dumps(line) + "\n" for line in lines))
            rows += lines
        print(f"round {number + 1} of {args.rounds}", flush=True)
    print(f"done; take {OUT} back")


if __name__ == "__main__":
    main()
