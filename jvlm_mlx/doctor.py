"""Check this machine: chip, memory, versions, fused kernels, right results, speed.

The exit code is 1 if something is wrong.
"""

import argparse
import sys

from .cli.main import EXIT_ERROR, EXIT_OK
from .diagnostics.checks import check_all

_WIDTH = 44


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "--speed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure how fast this machine is as well",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print one line for each finding, problems below it, and return the exit code."""
    problems = 0
    for finding in check_all(speed=arguments.speed):
        print(f"{finding.name:<{_WIDTH}}{finding.value}", flush=True)
        if finding.problem:
            problems += 1
            print(f"  problem: {finding.problem}", flush=True)
    print(f"\n{problems} problem{'s' * (problems != 1)} found" if problems else "\nall is well")
    return EXIT_ERROR if problems else EXIT_OK


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("doctor"))
