"""Convert, verify and inspect checkpoints: see `jvlm_mlx/convert.py`."""

import sys

from jvlm_mlx.cli.main import run_subcommand

if __name__ == "__main__":
    sys.exit(run_subcommand("convert", prog="python -m convert"))
