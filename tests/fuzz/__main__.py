"""A long run: every kind of input in worker processes under limits of memory and time.

    python -m tests.fuzz --minutes 30
    python -m tests.fuzz --inputs 2000 --kinds image config
    python -m tests.fuzz --kinds session --seed 1234 --inputs 1     # one finding again

Prints counts by kind, then every finding with what reproduces it. The exit code is 1 if there are
any: an exception that is no JvlmError, text on standard error, an abort, a hang, or memory that
grows.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from jvlm_mlx.cli.formatting import table
from tests.fuzz.targets import Targets

ROOT = Path(__file__).parents[2]
HANG_SECONDS = 10
"""Of processor time, so that a busy machine makes no hangs."""
STUCK_SECONDS = 60
"""Of the clock."""
START_SECONDS = 300
GROWTH_BYTES = 200 * 2**20
CHUNK = 250
"""Inputs of one worker process; memory that grows within it is a finding."""
_STUCK = object()


@dataclass
class Kind:
    """What became of the inputs of one kind."""

    counts: Counter = field(default_factory=Counter)
    """By outcome: used, refused, exception, abort, hang, growth."""
    slowest: tuple = (0.0, 0)
    """Seconds, and the seed that took them."""
    growth: int = 0
    findings: list = field(default_factory=list)

    def add(self, outcome, kind, seed, what):
        self.counts[outcome] += 1
        self.findings.append((kind, seed, what))


def run_worker(kind, first, count, found):
    """Run one worker; note what it did. Return how many inputs were tried."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.worker", kind, str(first), str(count)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
    )  # fmt: skip
    lines = queue.Queue()

    def read():
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    current, tried, memory = None, 0, []
    while True:
        line = _next_line(lines, process, current is None)
        if line is _STUCK:
            process.kill()
            found.add("hang", kind, current, f"a hang of more than {HANG_SECONDS} s")
            return tried + 1
        if line is None:
            break
        entry = json.loads(line)
        if "begin" in entry:
            current = entry["begin"]
            continue
        tried, current = tried + 1, None
        found.slowest = max(found.slowest, (entry["seconds"], entry["seed"]))
        memory.append(entry["memory"])
        if entry["finding"]:
            found.add("exception", kind, entry["seed"], entry["finding"])
        else:
            found.counts[entry["outcome"]] += 1
    code = process.wait()
    if current is not None or code:
        found.add("abort", kind, current, f"the process ended with code {code}")
        tried += current is not None
    # The first inputs fill caches and pools.
    settled = memory[len(memory) // 2 :]
    if len(settled) > 10:
        growth = settled[-1] - settled[0]
        found.growth = max(found.growth, growth)
        if growth > GROWTH_BYTES:
            found.add("growth", kind, first, f"memory grew by {growth / 2**20:.0f} MB")
    return max(tried, 1)


def _next_line(lines, process, is_between):
    """Return the worker's next line, None at its end, or `_STUCK`."""
    # Between two inputs everything is imported and loaded, at the start.
    seconds = START_SECONDS if is_between else STUCK_SECONDS
    start, processor_start = time.monotonic(), _processor_seconds(process)
    while True:
        try:
            return lines.get(timeout=1)
        except queue.Empty:
            used = _processor_seconds(process) - processor_start
            if time.monotonic() - start > seconds or (not is_between and used > HANG_SECONDS):
                return _STUCK


def _processor_seconds(process):
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    except OSError:  # no Linux, or at its end
        return 0.0


def main():
    """Run, report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long; else until --inputs are tried")
    parser.add_argument("--inputs", type=int, default=200, help="of each kind, if no --minutes")
    parser.add_argument("--kinds", nargs="+", choices=Targets.kinds(), default=Targets.kinds())
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    arguments = parser.parse_args()
    kinds = {name: Kind() for name in arguments.kinds}
    end = None if arguments.minutes is None else time.monotonic() + arguments.minutes * 60
    seed, left = arguments.seed, arguments.inputs
    try:
        while (time.monotonic() < end) if end is not None else left > 0:
            count = CHUNK if end is not None else min(CHUNK, left)
            for name, found in kinds.items():
                tried = 0
                while tried < count:
                    tried += run_worker(name, seed + tried, count - tried, found)
                print(f"{name}: {sum(found.counts.values())}", file=sys.stderr)
            seed, left = seed + count, left - count
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    columns = ("used", "refused", "exception", "abort", "hang")
    rows = [
        (name, *(found.counts[column] for column in columns),
         f"{found.slowest[0]:.1f}", found.slowest[1], f"{found.growth / 2**20:.0f}")
        for name, found in kinds.items()
    ]  # fmt: skip
    rows.append(("all", *(sum(row[n] for row in rows) for n in range(1, 6)), "", "", ""))
    print(table(("kind", *columns, "slowest s", "its seed", "growth MB"), rows))
    findings = [one for kind in kinds.values() for one in kind.findings]
    for kind, place, what in findings:
        print(f"\n{what.rstrip()}\n  python -m tests.fuzz --kinds {kind} --seed {place} --inputs 1")
    total = sum(rows[-1][1:6])
    print(f"\n{total} inputs, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
