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
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "printed").open("w") as printed:
        sys.stdout = sys.stderr = printed
        for descriptor in (1, 2):  # what libraries in C print, too
            os.dup2(printed.fileno(), descriptor)
        reader = (Path(folder) / "printed").open()  # with a place of its own
        from jvlm_mlx.processing.image_formats import silence_libtiff
        from tests.fuzz.targets import Targets

        silence_libtiff()
        logging.disable(logging.CRITICAL)
        targets = Targets(Path(folder))
        _printed(reader)
        for seed in range(first, first + count):
            out.write(json.dumps({"begin": seed}) + "\n")
            start = time.monotonic()
            try:
                outcome, finding = targets.run(kind, seed), None
            except Exception:
                outcome, finding = "finding", traceback.format_exc(limit=-6)
            printed.flush()
            finding = finding or _printed(reader)
            out.write(
                json.dumps(
                    {"seed": seed, "outcome": outcome, "finding": finding,
                     "seconds": time.monotonic() - start, "memory": _resident()}
                )
                + "\n"
            )  # fmt: skip
        targets.close()


def _printed(file):
    """Return what has been printed since the last time, past all that has a place for it."""
    text = file.read()
    return f"printed: {text[:2000]}" if text else None


def _resident():
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
