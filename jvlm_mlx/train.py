"""`python -m jvlm_mlx.train`."""

import sys

from .command_line.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("train"))
