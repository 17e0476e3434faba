"""A long run: every kind of input in worker processes under limits of memory and time.

    python -m tests.fuzz --minutes 30
    python -m tests.fuzz --inputs 2000 --kinds image config
    python -m tests.fuzz --kinds session --seed 1234 --inputs 1     # one finding again

Prints counts by kind, then every finding with what reproduces it. The exit code is 1 if there are
any: an exception that is no JvlmError, an abort, a hang, or memory that grows.
"""

import argparse
import json
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
GROWTH_BYTES = 200 * 2**20
CHUNK = 100
"""Inputs of one worker process; memory that grows within it is a finding."""


@dataclass
class Kind:
    """What became of the inputs of one kind."""

    counts: Counter = field(default_factory=Counter)
    slowest: float = 0.0
    growth: int = 0
    findings: list = field(default_factory=list)


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
        # The first line comes when everything is imported and loaded.
        wait = 120 if current is None and not tried else HANG_SECONDS
        try:
            line = lines.get(timeout=wait)
        except queue.Empty:
            process.kill()
            found.findings.append((kind, current, f"hang of more than {wait} s"))
            return tried + 1
        if line is None:
            break
        entry = json.loads(line)
        if "begin" in entry:
            current = entry["begin"]
            continue
        tried, current = tried + 1, None
        found.counts[entry["outcome"]] += 1
        found.slowest = max(found.slowest, entry["seconds"])
        memory.append(entry["memory"])
        if entry["finding"]:
            found.findings.append((kind, entry["seed"], entry["finding"]))
    code = process.wait()
    if current is not None or code:
        found.findings.append((kind, current, f"the process ended with code {code}"))
        tried += current is not None
    # The first inputs fill caches and pools.
    settled = memory[len(memory) // 2 :]
    if len(settled) > 10:
        growth = settled[-1] - settled[0]
        found.growth = max(found.growth, growth)
        if growth > GROWTH_BYTES:
            found.findings.append((kind, first, f"memory grew by {growth / 2**20:.0f} MB"))
    return max(tried, 1)


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
    while (time.monotonic() < end) if end is not None else left > 0:
        count = CHUNK if end is not None else min(CHUNK, left)
        for name, found in kinds.items():
            tried = 0
            while tried < count:
                tried += run_worker(name, seed + tried, count - tried, found)
        seed, left = seed + count, left - count
    rows = [
        (name, sum(one.counts.values()), one.counts["used"], one.counts["refused"],
         len(one.findings), f"{one.slowest:.1f}", f"{one.growth / 2**20:.0f}")
        for name, one in kinds.items()
    ]  # fmt: skip
    print(table(("kind", "inputs", "used", "refused", "findings", "slowest s", "growth MB"), rows))
    findings = [one for kind in kinds.values() for one in kind.findings]
    for kind, place, what in findings:
        print(f"\n{what.rstrip()}\n  python -m tests.fuzz --kinds {kind} --seed {place} --inputs 1")
    total = sum(row[1] for row in rows)
    print(f"\n{total} inputs, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
