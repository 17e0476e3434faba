"""A campaign of faults: killed at every call, or let down by the disk, nothing is lost.

    python -m tests.fuzz.faults --kills 500 --failures 500
    python -m tests.fuzz.faults --jobs batch chat --kills 20 --failures 20 --seed 3

Each trial is a subcommand in a process of its own with one fault, and a good run behind it. The
failed run must say so in one line; the good one must end as an undisturbed one would have, and
nothing else may be left. Half of the kills come at a call that writes, the others at any time.

Where there is a compiler, a small library in C lets every call of the process fail, those of MLX
too; without one, or with --pure, Python's own calls fail.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.faults.injectors import compile_interposer, injector, is_interposed

ROOT = Path(__file__).parents[3]


def main():
    """Run, report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="trials that are killed")
    parser.add_argument("--failures", type=int, default=100, help="trials whose calls fail")
    parser.add_argument("--jobs", nargs="+", metavar="NAME", help="some only; else all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pure", action="store_true", help="without the library in C")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.pure and not is_interposed():
            library = compile_interposer(folder)
            if library is not None:
                command = [sys.executable, "-m", "tests.fuzz.faults", *sys.argv[1:]]
                environment = {**os.environ, "LD_PRELOAD": str(library)}
                return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode
        return campaign(arguments, Path(folder).resolve())


def campaign(arguments, folder):
    """Do all trials, print what became of them, and return the exit code."""
    # Late: the process that only starts another one needs none of it.
    from jvlm_mlx.cli.formatting import table
    from tests.fuzz.faults import fault
    from tests.fuzz.faults.jobs import jobs
    from tests.fuzz.faults.trials import Trials

    chance = random.Random(arguments.seed)
    inputs = folder / "inputs"
    inputs.mkdir()
    found = jobs(inputs, arguments.jobs)
    names = arguments.jobs or list(found)
    rows, findings, start = [], [], time.monotonic()
    for number, name in enumerate(names):
        scratch = folder / f"job-{number}"
        scratch.mkdir()
        trials = Trials(found[name], scratch, injector())
        kills = _fraction(arguments.kills, number, len(names))
        failures = _fraction(arguments.failures, number, len(names))
        timed = [fault.Fault(seconds=chance.uniform(0, trials.seconds)) for _ in range(kills // 2)]
        chosen = [
            *timed,
            *_spread(chance, fault.kills(trials.calls), kills - len(timed)),
            *_spread(chance, fault.failures(trials.calls), failures),
        ]
        bad = 0
        for one in chosen:
            problems = trials.findings(one)
            bad += bool(problems)
            findings += [f"{name}: {one}: {problem}" for problem in problems]
        rows.append((name, len(trials.calls), kills, failures, bad))
        print(f"{name}: {bad} findings", file=sys.stderr)
    total = [sum(row[place] for row in rows) for place in (2, 3, 4)]
    print(table(("job", "calls", "kills", "failures", "findings"), [*rows, ("all", "", *total)]))
    print("\n".join(["", *findings]))
    print(f"{total[0]} kills, {total[1]} failures, {total[2]} findings,", end=" ")
    print(f"{time.monotonic() - start:.0f} s, {type(injector()).__name__}")
    return 1 if findings else 0


def _fraction(total, number, count):
    """Return how many of all trials a job gets."""
    return total * (number + 1) // count - total * number // count


def _spread(chance, faults, count):
    """Draw faults evenly from the first call to the last."""
    if not faults:
        return []
    width = len(faults) / count if count else 0
    places = [int(place * width + chance.random() * width) for place in range(count)]
    return [faults[min(place, len(faults) - 1)] for place in places]


if __name__ == "__main__":
    sys.exit(main())
