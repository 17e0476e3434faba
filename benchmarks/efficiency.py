"""The paper's efficiency table next to what this implementation's decoder really gets.

    python -m benchmarks.efficiency

Formulas (n grid tiles and a thumbnail, P = 729 patches a tile, L tokens of the decoder):

    patch tokens without pooling    (n + 1) P
    with pooling, paper             (n + 1) floor(P / 4)
    with pooling, actual            (n + 1) windows of 2 x 2, rounded up, less the overlap
    prefill work                    layers x (2 L weights + 2 L^2 heads x head size)
    KV cache                        2 x layers x key/value heads x head size x 2 bytes x L
    total work                      tower + connector + prefill

The paper's ratios follow if the part of attention that grows with the square of L is left out
("linear" below; what remains of the difference is the text of its question). What the decoder
gets is counted in full.
"""

import argparse
from dataclasses import asdict, dataclass

from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.diagnostics.performance_model import connector, prefill, tower
from jvlm_mlx.diagnostics.roofline import BFLOAT16
from jvlm_mlx.generation.memory import kv_bytes
from jvlm_mlx.processing.tiling import ImageLayout

from .harness.models import released_model_config
from .harness.photos import image_processor
from .harness.report import json_line, markdown_table

PAPER = {"tiles": 13, "without": 9477, "with": 2366, "prefill": 3.9, "kv": 4.0, "total": 2.3}
"""What the paper (arXiv 2512.04032) states for an image of 12 tiles and a thumbnail."""


@dataclass(frozen=True)
class Efficiency:
    """An image of so many tiles: without pooling, as in the paper, and as the processor does."""

    tiles: int
    """Grid and thumbnail."""
    patches: int
    """Patch tokens without pooling."""
    paper_tokens: int
    """Patch tokens with pooling, by the paper's count."""
    actual_tokens: int
    """Patch tokens that reach the decoder."""
    actual_with_separators: int
    """The same with row, start and end tokens."""
    prefill_ratio: float
    """Prefill work without pooling over that with pooling, by the paper's count of tokens and
    without the square of attention."""
    actual_prefill_ratio: float
    """The same for what the decoder gets, attention in full."""
    kv_megabytes: float
    """KV cache in bfloat16 of what the decoder gets, row, start and end tokens included."""
    unpooled_kv_megabytes: float
    total_ratio: float
    """Tower, connector and prefill, without pooling over with, counted as `prefill_ratio`."""
    actual_total_ratio: float


def efficiency(config: ModelConfig, layout: ImageLayout) -> Efficiency:
    """Compute one row from the config and an image's layout."""
    tiles, patches = layout.num_tiles, layout.num_tiles * config.tower.num_patches
    window = config.connector.pooling_size[0] * config.connector.pooling_size[1]
    paper = tiles * (config.tower.num_patches // window)
    thumbnail = 1
    for side, step in zip(config.tower.patch_grid, config.connector.pooling_size, strict=True):
        thumbnail *= -(-side // step)
    actual = thumbnail + layout.block[0] * layout.block[1]
    tower_work = tiles * tower(config, 1, BFLOAT16).flops
    # Without pooling there is no connector but its projector, which is small beside the rest.
    linear, linear_paper = (linear_operations(config, tokens) for tokens in (patches, paper))
    full, full_actual = (prefill(config, tokens, BFLOAT16).flops for tokens in (patches, actual))
    work_paper = tower_work + connector(config, paper, BFLOAT16).flops + linear_paper
    work_actual = tower_work + connector(config, actual, BFLOAT16).flops + full_actual
    token_megabytes = kv_bytes(config, 1, BFLOAT16.value_bytes) / 1e6
    return Efficiency(
        tiles=tiles,
        patches=patches,
        paper_tokens=paper,
        actual_tokens=actual,
        actual_with_separators=layout.num_tokens,
        prefill_ratio=linear / linear_paper,
        actual_prefill_ratio=full / full_actual,
        kv_megabytes=layout.num_tokens * token_megabytes,
        unpooled_kv_megabytes=patches * token_megabytes,
        total_ratio=(tower_work + linear) / work_paper,
        actual_total_ratio=(tower_work + full) / work_actual,
    )


def linear_operations(config: ModelConfig, tokens: int) -> float:
    """Return the operations of a prefill without the part that grows with the square of tokens."""
    stage = prefill(config, tokens, BFLOAT16)
    return stage.flops - stage.flops_of("attention")


def rows() -> list[Efficiency]:
    """Return a row for each number of tiles, for images of 3 : 2."""
    config, processor = released_model_config(), image_processor()
    layouts: dict[int, ImageLayout] = {}
    for max_crops in range(1, 13):
        layout = processor.layout(1500, 1000, max_crops=max_crops)
        layouts.setdefault(layout.num_tiles, layout)
    return [efficiency(config, layout) for layout in layouts.values()]


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    found = rows()
    header = (
        "tiles", "patches", "tokens, paper", "tokens, actual", "with separators", "prefill, linear",
        "prefill, actual", "KV MB, actual", "KV MB, unpooled", "total, linear", "total, actual",
    )  # fmt: skip
    lines: list[tuple[object, ...]] = [
        (
            row.tiles, row.patches, row.paper_tokens, row.actual_tokens, row.actual_with_separators,
            f"{row.prefill_ratio:.1f}x", f"{row.actual_prefill_ratio:.1f}x",
            f"{row.kv_megabytes:.0f}", f"{row.unpooled_kv_megabytes:.0f}",
            f"{row.total_ratio:.1f}x", f"{row.actual_total_ratio:.1f}x",
        )
        for row in found
    ]  # fmt: skip
    lines.append(
        (
            "13, stated in the paper", PAPER["without"], PAPER["with"], "-", "-",
            f"{PAPER['prefill']}x", "-", "-", f"{PAPER['kv']}x", f"{PAPER['total']}x", "-",
        )
    )  # fmt: skip
    print(markdown_table(header, lines))
    print(json_line("efficiency", {"rows": [asdict(row) for row in found], "paper": PAPER}))


if __name__ == "__main__":
    main()
