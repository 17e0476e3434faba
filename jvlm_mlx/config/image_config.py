"""How images become tiles: preprocessor_config.json."""

import dataclasses
from dataclasses import dataclass

from ..errors import CheckpointError, RequestError
from .config_reader import ConfigReader, boolean, integer, integers, number, numbers, size, sizes

MAX_TILES = 1000
"""Far more than any context holds; keeps a mistyped limit from listing millions of grids."""


def _limits_problem(max_crops: int, min_pixels: int, max_pixels: int) -> str | None:
    """Say what is wrong with the limits on tiles and areas, or None."""
    if not 1 <= max_crops <= MAX_TILES:
        return f"max_crops is {max_crops}; expected 1 to {MAX_TILES} tiles"
    if not 0 < min_pixels <= max_pixels:
        return (
            f"min_pixels {min_pixels} and max_pixels {max_pixels}:"
            " expected 0 < min_pixels <= max_pixels"
        )
    return None


@dataclass(frozen=True)
class ImageConfig:
    """Settings of the image processor. Sizes are in pixels unless the name says otherwise.

    Raises:
        CheckpointError: two config contradict each other.
    """

    tile_size: tuple[int, int]
    """Height and width of one tile, the tower's input."""
    patch_size: int
    """Side of the square patches a tile is cut into."""
    overlap_margins: tuple[int, int]
    """Patches that a tile shares with its neighbor before and after it, on both axes."""
    max_crops: int
    """Most tiles of the grid; the thumbnail is not counted."""
    min_pixels: int
    """Area below which an image is enlarged first."""
    max_pixels: int
    """Area above which an image is reduced first."""
    pooling_size: tuple[int, int]
    """Height and width, in patches, of the window that becomes one token."""
    use_column_tokens: bool
    """Whether each row of patch tokens ends with a column token."""
    do_resize: bool
    """Whether images are first brought to a multiple of the patch within the two areas."""
    interpolation: str
    """`bilinear` or `bicubic`."""
    antialias: bool
    """Whether the kernel widens when it reduces."""
    resize_in_float32: bool
    """False: the first resize works on 8-bit values and rounds back to 8 bits."""
    normalization_method: str
    """`minmax` (to `image_range`) or `gaussian` (`image_mean` and `image_std` per channel)."""
    image_range: tuple[float, float]
    """What 0 and 255 become under `minmax`."""
    image_mean: tuple[float, ...]
    """Mean per channel under `gaussian`."""
    image_std: tuple[float, ...]
    """Standard deviation per channel under `gaussian`."""

    @property
    def overlap(self) -> int:
        """Pixels that neighboring tiles share, on both axes."""
        return sum(self.overlap_margins) * self.patch_size

    @property
    def tile_stride(self) -> tuple[int, int]:
        """Height and width of a tile's own share: pixels from one tile to the next."""
        return self.tile_size[0] - self.overlap, self.tile_size[1] - self.overlap

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a tile."""
        return self.tile_size[0] // self.patch_size, self.tile_size[1] // self.patch_size

    @property
    def window_grid(self) -> tuple[int, int]:
        """Rows and columns of pooled windows in a tile; the last may be partly padding."""
        return (
            -(-self.patch_grid[0] // self.pooling_size[0]),
            -(-self.patch_grid[1] // self.pooling_size[1]),
        )

    @property
    def patch_values(self) -> int:
        """Numbers in one flattened RGB patch."""
        return self.patch_size * self.patch_size * 3

    def override(
        self,
        *,
        max_crops: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> "ImageConfig":
        """Return a copy with other limits of a request; None keeps the checkpoint's.

        Raises:
            RequestError: a limit is no whole number, out of range or against another one.
        """
        given = {"max_crops": max_crops, "min_pixels": min_pixels, "max_pixels": max_pixels}
        for name, value in given.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise RequestError(f"{name} is {value!r}; expected a whole number")
        most = self.max_crops if max_crops is None else max_crops
        low = self.min_pixels if min_pixels is None else min_pixels
        high = self.max_pixels if max_pixels is None else max_pixels
        problem = _limits_problem(most, low, high)
        if problem is not None:
            raise RequestError(problem)
        return dataclasses.replace(self, max_crops=most, min_pixels=low, max_pixels=high)

    def __post_init__(self) -> None:
        """Refuse config that no image could be cut with."""
        if self.patch_size < 1 or any(
            side < self.patch_size or side % self.patch_size for side in self.tile_size
        ):
            raise CheckpointError(
                f"base_input_size {list(self.tile_size)} is not a multiple of"
                f" patch_size {self.patch_size}"
            )
        if min(self.overlap_margins) < 0 or sum(self.overlap_margins) >= min(self.patch_grid):
            raise CheckpointError(
                f"overlap_margins {list(self.overlap_margins)} leave nothing of a tile"
                f" of {self.patch_grid[0]} x {self.patch_grid[1]} patches"
            )
        if min(self.pooling_size) < 1:
            raise CheckpointError(
                f"pooling_h {self.pooling_size[0]} and pooling_w {self.pooling_size[1]}:"
                " expected at least 1 patch each"
            )
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or 0.0 in self.image_std:
            raise CheckpointError(
                f"image_mean {list(self.image_mean)} and image_std {list(self.image_std)}:"
                " expected three numbers each, none of image_std 0"
            )
        problem = _limits_problem(self.max_crops, self.min_pixels, self.max_pixels)
        if problem is not None:
            raise CheckpointError(problem)

    @classmethod
    def read(cls, reader: ConfigReader) -> "ImageConfig":
        """Read the contents of preprocessor_config.json.

        Raises:
            UnsupportedSettingError: a setting asks for a step that is not implemented.
            CheckpointError: a setting is missing or malformed.
        """
        reader.only("cropping_method", "overlap-and-resize")
        reader.only("preserve_aspect_ratio", False)
        reader.only("random_interpolation", False)
        reader.only("padding_mask", False)
        reader.only("do_convert_rgb", True)
        # Padding is only ever added with preserve_aspect_ratio. Token ids are read from the
        # tokenizer and compared with these in `tokens.py`; class names select code elsewhere.
        reader.harmless("padding_value", "auto_map", "image_processor_type", "processor_class")
        reader.harmless("start_token_id", "end_token_id", "patch_token_id", "column_token_id")

        tile_size = reader.read("base_input_size", sizes)
        margins = reader.read("overlap_margins", integers)
        if len(tile_size) != 2 or len(margins) != 2:
            raise CheckpointError(
                f"{reader.name('base_input_size')} and overlap_margins must have two numbers each"
            )
        # Newer files repeat the two areas under `size`; the plain names win, as in the original.
        areas: dict[str, int | None] = {"shortest_edge": None, "longest_edge": None}
        if "size" in reader:
            section = reader.section("size")
            areas = {key: section.read(key, integer, None) for key in areas}

        def area(key: str, alias: str) -> int:
            value = reader.read(key, integer, areas[alias])
            if value is None:
                raise CheckpointError(f"{reader.name(key)} is missing")
            return value

        config = cls(
            tile_size=(tile_size[0], tile_size[1]),
            patch_size=reader.read("patch_size", size),
            overlap_margins=(margins[0], margins[1]),
            max_crops=reader.read("max_crops", integer),
            min_pixels=area("min_pixels", "shortest_edge"),
            max_pixels=area("max_pixels", "longest_edge"),
            pooling_size=(reader.read("pooling_h", size), reader.read("pooling_w", size)),
            use_column_tokens=reader.read("use_column_tokens", boolean, True),
            do_resize=reader.read("do_resize", boolean, True),
            interpolation=reader.choice("interpolation", ("bilinear", "bicubic")),
            antialias=reader.read("antialias", boolean),
            resize_in_float32=reader.read("resize_in_float32", boolean),
            normalization_method=reader.choice("normalization_method", ("minmax", "gaussian")),
            image_range=(
                reader.read("image_min", number, -1.0),
                reader.read("image_max", number, 1.0),
            ),
            image_mean=reader.read("image_mean", numbers, (0.5, 0.5, 0.5)),
            image_std=reader.read("image_std", numbers, (0.5, 0.5, 0.5)),
        )
        for key, expected in zip(
            ("token_length_h", "token_length_w"), config.window_grid, strict=True
        ):
            found = reader.read(key, integer, expected)
            if found != expected:
                reader.refuse(key, found, f"{expected}, what tile, patch and pooling give")
        return config
