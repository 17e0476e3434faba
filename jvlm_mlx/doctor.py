"""Check this machine: chip, memory, versions, fused kernels, right results, speed.

Every stage is compared with the CPU's plain functions, and its time with what the machine allows.
The exit code is 1 if something is wrong; being slow is not.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TextIO

import mlx.core as mx

from .cli.formatting import json_line, printable
from .cli.main import EXIT_ERROR, EXIT_OK
from .diagnostics.checks import CheckUp
from .diagnostics.machine import read_system
from .diagnostics.report import Finding, counted
from .errors import RequestError
from .version import __version__

_WIDTH = 40
_CAPTURE_VARIABLE = "MTL_CAPTURE_ENABLED"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "--speed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure how fast this machine is as well",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--quick", action="store_true",
        help="narrow models and a part of each stage: a minute; the default on a CPU",
    )  # fmt: skip
    group.add_argument(
        "--full", action="store_true",
        help="the release's widths, layers and a photo of 13 tiles; the default on a GPU",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print everything as one line, to be sent"
    )
    parser.add_argument(
        "--capture", type=Path, metavar="FILE.gputrace",
        help="record a tile and a decode step on the GPU for Xcode, and nothing else",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Print one line for each finding, problems below it, and return the exit code."""
    if arguments.capture is not None:
        capture(arguments.capture)
        print(f"recorded: {arguments.capture}")
        return EXIT_OK
    full = arguments.full or (mx.default_device().type == mx.gpu and not arguments.quick)
    check_up = CheckUp(read_system(), speed=arguments.speed, full=full)
    for finding in check_up.run():
        if not arguments.json:
            _print(finding, sys.stdout)
        elif sys.stderr.isatty():
            _print(finding, sys.stderr)  # the line itself comes at the end
    has_problem = any(finding.verdict == "problem" for finding in check_up.findings)
    if arguments.json:
        findings = [finding.as_json() for finding in check_up.findings]
        verdict = "problem" if has_problem else "ok"
        print(json_line({"jvlm_mlx": __version__, "verdict": verdict, "findings": findings}))
    else:
        print(f"\n{counted(check_up.findings)}")
    return EXIT_ERROR if has_problem else EXIT_OK


def _print(finding: Finding, stream: TextIO) -> None:
    print(f"{finding.name:<{_WIDTH}}  {printable(finding.value)}", file=stream, flush=True)
    for kind in ("problem", "suspect"):
        if text := getattr(finding, kind):
            print(f"  {kind}: {printable(text)}", file=stream, flush=True)


def capture(file: Path) -> None:
    """Record what the GPU does for one tile and one decode step, at the release's widths.

    Raises:
        RequestError: there is no Metal, it does not record in this process, or `file` is not a
            new `.gputrace`.
    """
    if not mx.metal.is_available():
        raise RequestError("capture needs a Mac with MLX's GPU backend; this machine has none")
    if file.suffix != ".gputrace" or file.exists():
        raise RequestError(f"capture is {file}; give a new name that ends with .gputrace")
    if os.environ.get(_CAPTURE_VARIABLE) != "1":
        raise RequestError(
            f"Metal records only if it is told so at its start: {_CAPTURE_VARIABLE}=1"
            f" jvlm doctor --capture {file}"
        )
    from .config.dtypes import automatic_dtype
    from .diagnostics.comparison import Sample
    from .diagnostics.sample_model import released_config, with_depth

    sample = Sample(with_depth(released_config(), 2, 2, 16_384), automatic_dtype())
    mx.eval(sample.answer(sample.model))  # kernels are compiled before
    try:
        mx.metal.start_capture(str(file))
        try:
            mx.eval(sample.answer(sample.model))
            mx.synchronize()
        finally:
            mx.metal.stop_capture()
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise RequestError(f"Metal cannot record to {file}: {reason}") from None


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("doctor"))
