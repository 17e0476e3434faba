"""Which windows of which tiles reach the decoder: index arithmetic on the host.

`image_input_idx` comes from the processor as a host array. All choices that depend on it are
made here, before the graph is built, so the forward pass itself never waits for the device.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TileGroup:
    """A few tiles that go through tower and connector together."""

    tiles: Indices
    """(t,) indices of the tiles in the flattened batch of B T tiles."""
    patches: Indices
    """(n, p) for each kept window the indices of its p patches in the group's t P patches."""
    inside: npt.NDArray[np.bool_]
    """(n, p) False where a window extends beyond the patch grid."""


@dataclass(frozen=True)
class WindowPlan:
    """Where features come from and where they go."""

    groups: tuple[TileGroup, ...]
    sources: Indices
    """(B, L) for each token the index of its feature among all kept windows, or -1 for none; see
    `feature_sources`."""

    @property
    def num_windows(self) -> int:
        """Kept windows of the whole batch."""
        return sum(len(group.patches) for group in self.groups)


def window_patches(
    patch_grid: tuple[int, int], pooling_size: tuple[int, int]
) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Return the patches of every pooled window of one tile.

    A 3 x 3 grid in 2 x 2 windows has four windows; the grid is extended to 4 x 4 at the bottom
    and on the right, and `.` marks what is outside:

        0 1 2 .       window 0: 0 1 3 4    window 1: 2 . 5 .
        3 4 5 .       window 2: 6 7 . .    window 3: 8 . . .
        6 7 8 .
        . . . .

    Returns:
        patches (W, p) int32 with 0 for what is outside, inside (W, p) bool. Windows and the
        patches within one are in reading order.
    """
    rows, columns = (-(-side // step) for side, step in zip(patch_grid, pooling_size, strict=True))
    height, width = pooling_size
    # (R, 1, h, 1) and (1, C, 1, w) broadcast to (R, C, h, w): the patch at that position
    row = (np.arange(rows)[:, None] * height + np.arange(height))[:, None, :, None]
    column = (np.arange(columns)[:, None] * width + np.arange(width))[None, :, None, :]
    inside = (row < patch_grid[0]) & (column < patch_grid[1])
    patches = np.where(inside, row * patch_grid[1] + column, 0)
    # (R, C, h, w) -> (W, p)
    shape = (rows * columns, height * width)
    return patches.reshape(shape).astype(np.int32), inside.reshape(shape)


def feature_sources(
    rows: npt.NDArray[np.integer], positions: npt.NDArray[np.integer], shape: tuple[int, int]
) -> Indices:
    """Return for each token of a batch which feature is added to its embedding.

    Args:
        rows: (N,) row of the batch that each feature belongs to.
        positions: (N,) its token in that row.
        shape: B and L.

    Returns:
        (B, L) int32 index of the feature, or -1 for none.

    Raises:
        ValueError: a position is beyond the row, or has two features.
    """
    if positions.max(initial=-1) >= shape[1]:
        raise ValueError(f"an image feature is for token {positions.max()} of {shape[1]}")
    sources = np.full(shape, -1, np.int32)
    sources[rows, positions] = np.arange(len(positions))
    if np.count_nonzero(sources >= 0) != len(positions):
        raise ValueError("two image features are for one token")
    return sources


def plan_windows(
    image_input_idx: npt.NDArray[np.integer],
    sequence_length: int,
    patch_grid: tuple[int, int],
    pooling_size: tuple[int, int],
    tile_group_size: int,
) -> WindowPlan:
    """Plan which windows are computed, and which token each feature belongs to.

    Tiles without a window that reaches the decoder, like the padding of a batch, are not computed.

    Args:
        image_input_idx: (B, T, W) position of each window's token, negative if dropped.
        sequence_length: L, tokens of each prompt.
        patch_grid: rows and columns of patches in a tile.
        pooling_size: rows and columns of patches in a window.
        tile_group_size: maximum number of tiles of a group.

    Raises:
        ValueError: a position is beyond the sequence, is taken twice, or W is not what the
            grid gives.
    """
    batch, tiles, windows = image_input_idx.shape
    patches, inside = window_patches(patch_grid, pooling_size)
    if windows != len(patches):
        raise ValueError(
            f"image_input_idx has {windows} windows a tile, the patch grid gives {len(patches)}"
        )
    # (B, T, W) -> (B T, W)
    positions = image_input_idx.reshape(batch * tiles, windows)
    tile_of, window_of = np.nonzero(positions >= 0)

    sources = feature_sources(
        tile_of // tiles, positions[tile_of, window_of], (batch, sequence_length)
    )
    used = np.unique(tile_of)
    num_patches = patch_grid[0] * patch_grid[1]
    groups = []
    for start in range(0, len(used), tile_group_size):
        group = used[start : start + tile_group_size]
        members = np.isin(tile_of, group)
        first_row = np.searchsorted(group, tile_of[members]) * num_patches
        groups.append(
            TileGroup(
                tiles=group.astype(np.int32),
                patches=(first_row[:, None] + patches[window_of[members]]).astype(np.int32),
                inside=inside[window_of[members]],
            )
        )
    return WindowPlan(groups=tuple(groups), sources=sources)
