"""Tries inputs of one kind, one after the other, and reports each on standard output.

    python -m tests.fuzz.worker KIND FIRST_SEED COUNT

A line of JSON before each input and one behind it, so that whoever watches knows what killed it.
"""

import json
import logging
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

MEMORY_BYTES = 6 * 2**30


def main(kind, first, count):
    """Try inputs `first` to `first + count`."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("error")
    out = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for the whole process
    for descriptor in (1, 2):  # what libraries in C print, too
        os.dup2(sys.stdout.fileno(), descriptor)
    from tests.fuzz.targets import Targets

    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        targets = Targets(Path(folder))
        for seed in range(first, first + count):
            out.write(json.dumps({"begin": seed}) + "\n")
            start = time.monotonic()
            try:
                outcome, finding = targets.run(kind, seed), None
            except Exception:
                outcome, finding = "finding", traceback.format_exc(limit=-6)
            out.write(
                json.dumps(
                    {"seed": seed, "outcome": outcome, "finding": finding,
                     "seconds": time.monotonic() - start, "memory": _resident()}
                )
                + "\n"
            )  # fmt: skip
        targets.close()


def _resident():
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
