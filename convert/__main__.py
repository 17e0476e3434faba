"""Convert, verify and inspect checkpoints: see `jvlm_mlx/convert`."""

import sys

from jvlm_mlx.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("convert", prog="python -m convert"))
