"""What the demo's makers' commands share; they are no subcommands of `jvlm`."""

import argparse
import sys
from collections.abc import Callable, Sequence

from jvlm_mlx.cli.main import EXIT_ERROR, EXIT_INTERRUPTED
from jvlm_mlx.errors import JvlmError


def run_command(
    name: str,
    summary: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None = None,
) -> int:
    """Read the arguments, run, and return the exit code; errors are one line each.

    Args:
        name: of the command, for its help.
        summary: the first line is shown in the help.
        add_arguments: adds the flags.
        run: does it.
        arguments: None: those of the process.
    """
    parser = argparse.ArgumentParser(
        prog=name,
        description=(summary or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_arguments(parser)
    try:
        return run(parser.parse_args(arguments))
    except JvlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED


def positive(text: str) -> int:
    """Read a number above 0, for `add_argument`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number
