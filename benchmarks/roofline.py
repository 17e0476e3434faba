"""What each chip allows at best for a photo of 13 tiles, stage by stage: computed, not measured.

    python -m benchmarks.roofline

Operations, bytes and kernels are those of the performance model (`jvlm doctor` measures a machine
against the same ones), rates those of the chips in `jvlm_mlx/diagnostics/chips.py`: 85 % of the
peaks that Apple states or that follow from cores and clock, and 2.4 us for every kernel. Nothing of
it was measured on a Mac. Decoding is one step with the whole prompt in the KV cache.
"""

import argparse

from jvlm_mlx.diagnostics import performance_model as performance
from jvlm_mlx.diagnostics.chips import CHIPS, Chip
from jvlm_mlx.diagnostics.performance_model import LONG_PROMPT
from jvlm_mlx.diagnostics.roofline import BFLOAT16, Stage, WeightFormat
from jvlm_mlx.diagnostics.sample_model import released_config
from jvlm_mlx.startup import MAX_MEGABYTES, MAX_OPERATIONS

from .harness.report import json_line, markdown_table

FORMATS = (BFLOAT16, WeightFormat("8-bit", 8, 2), WeightFormat("4-bit", 4, 2))
BUFFER_LIMITS = ((50, 50), (MAX_OPERATIONS[1], MAX_MEGABYTES[1]))
"""MLX's own on a Max or Ultra, and what this package's command line sets."""
GROUP = 4
"""Tiles that go through the tower at once."""


def stages() -> dict[str, list[Stage]]:
    """Return what the table has a column of: each with the stages that it is the sum of."""
    config, prompt = released_config(), LONG_PROMPT
    groups = [GROUP] * (prompt.tiles // GROUP) + [prompt.tiles % GROUP] * (prompt.tiles % GROUP > 0)
    tower = [performance.tower(config, tiles, BFLOAT16) for tiles in groups]
    connector = [performance.connector(config, prompt.windows, BFLOAT16)]
    prefill = [performance.prefill(config, prompt.tokens, BFLOAT16)]
    head = [performance.head(config, BFLOAT16)]
    found = {
        "tower": tower,
        "connector": connector,
        "prefill": prefill,
        "first token": [*tower, *connector, *prefill, *head],
    }
    for form in FORMATS:
        step = performance.decode_step(config, prompt.tokens, form)
        found[f"decode, {form.name}"] = [step]
    return found


def seconds(chip: Chip) -> dict[str, float]:
    """Return the time of each column on a chip."""
    return {
        name: sum(stage.seconds(chip.rates) for stage in parts) for name, parts in stages().items()
    }


def _text(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1e3:.1f} ms"


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    work = [
        (
            name,
            f"{sum(part.flops for part in parts) / 1e12:.2f}",
            f"{sum(part.nbytes for part in parts) / 1e9:.2f}",
            sum(part.launches for part in parts),
            *(sum(part.command_buffers(limits) for part in parts) for limits in BUFFER_LIMITS),
        )
        for name, parts in stages().items()
    ]
    buffers = (f"buffers of {kernels} kernels, {size} MB" for kernels, size in BUFFER_LIMITS)
    print(markdown_table(("stage", "TFLOP", "GB", "kernels", *buffers), work))
    print("\ncomputed, not measured:\n")
    times = {chip: seconds(chip) for chip in CHIPS}
    rows = [
        (
            f"{chip.name}, {chip.gpu_cores} cores",
            f"{chip.teraflops:.1f}",
            f"{chip.bandwidth:.0f}",
            *map(_text, found.values()),
        )
        for chip, found in times.items()
    ]
    print(markdown_table(("chip", "TFLOP/s", "GB/s", *stages()), rows))
    content = [
        {"chip": chip.name, "cores": chip.gpu_cores}
        | {name: round(value, 5) for name, value in one.items()}
        for chip, one in times.items()
    ]
    print(json_line("roofline", {"computed": content}))


if __name__ == "__main__":
    main()
