"""`python -m jvlm_mlx.convert`, and the installed `jvlm-convert`."""

import sys
from pathlib import Path

from ..command_line.main import run_verb


def main() -> int:
    """Run `convert` and return its exit code."""
    name = Path(sys.argv[0]).name
    return run_verb("convert", prog=None if name.endswith(".py") else name)


if __name__ == "__main__":
    sys.exit(main())
