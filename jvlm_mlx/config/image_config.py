"""How images become tiles: preprocessor_config.json."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, RequestError
from .config_reader import ConfigReader, boolean, integer, number, numbers, size
from .json_file import quoted

logger = logging.getLogger(__name__)

DEFAULT_MIN_PIXELS = 56 * 56
DEFAULT_MAX_PIXELS = 28 * 28 * 1280
"""Areas of a checkpoint that names none."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation per channel of a checkpoint that names none."""
MAX_TILES = 1000
"""Far more than any context holds; keeps a mistyped limit from listing millions of grids."""
MAX_PIXELS = 2**26
"""Far more than any grid of tiles shows; keeps a mistyped area from filling the memory."""
MAX_NORMALIZED = 1000
"""Far beyond any range that pixels are brought to; float32 must hold what is computed."""

_RANGES = {
    "max_crops": (0, MAX_TILES), "min_pixels": (1, MAX_PIXELS), "max_pixels": (1, MAX_PIXELS),
}  # fmt: skip


def _limits_problem(limits: Mapping[str, int | None]) -> str | None:
    """Say what is wrong with the limits on tiles and areas, or None."""
    for name, (lowest, highest) in _RANGES.items():
        value = limits[name]
        if value is not None and not lowest <= value <= highest:
            return f"{name} is {quoted(value)}; expected {lowest} to {highest}"
    low, high = limits["min_pixels"], limits["max_pixels"]
    if low is not None and high is not None and low > high:
        return f"min_pixels {low} and max_pixels {high}: expected min_pixels <= max_pixels"
    return None


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What a request may ask of its images; None keeps the checkpoint's.

    Raises:
        RequestError: an option is of another type, out of range, or contradicts another one.
    """

    max_crops: int | None = None
    """Most tiles of the grid; the thumbnail is not counted. 0: the thumbnail alone, which the model
    was not trained on: an overview in the fewest tokens."""
    min_pixels: int | None = None
    """Area below which an image is enlarged first."""
    max_pixels: int | None = None
    """Area above which an image is reduced first."""
    do_resize: bool | None = None
    """Whether images are first brought to a multiple of the patch within the two areas. The
    released processor does so; the script of the release does not, unless a limit on pixels is
    given."""

    def __post_init__(self) -> None:
        for name in _RANGES:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise RequestError(f"{name} is {quoted(value)}; expected a whole number")
        if self.do_resize is not None and not isinstance(self.do_resize, bool):
            raise RequestError(f"do_resize is {quoted(self.do_resize)}; expected true or false")
        problem = _limits_problem(vars(self))
        if problem is not None:
            raise RequestError(problem)

    @classmethod
    def of(cls, options: "ImageOptions | None", overrides: Mapping[str, Any]) -> "ImageOptions":
        """Return `options` with single ones replaced, or made of these alone.

        Raises:
            RequestError: there is no option of a name, or a value does not fit.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in overrides if name not in names]
        if unknown:
            raise RequestError(
                f"there is no image option {quoted(unknown[0])}; known: {', '.join(names)}"
            )
        return dataclasses.replace(options or cls(), **overrides)


@dataclass(frozen=True)
class ImageConfig:
    """Settings of the image processor. Sizes are in pixels unless the name says otherwise.

    Raises:
        CheckpointError: two settings contradict each other.
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
        """Height and width of a tile without the overlap: pixels from one tile to the next."""
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

    def override(self, options: ImageOptions) -> "ImageConfig":
        """Return a copy with the options of a request in place of the checkpoint's.

        Raises:
            RequestError: an option contradicts one of the checkpoint.
        """
        given = {name: value for name, value in vars(options).items() if value is not None}
        problem = _limits_problem(vars(self) | given)
        if problem is not None:
            raise RequestError(problem)
        return dataclasses.replace(self, **given)

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
        numbers = (*self.image_range, *self.image_mean, *(1 / one for one in self.image_std))
        if not all(abs(one) <= MAX_NORMALIZED for one in numbers):  # false of NaN, too
            raise CheckpointError(
                f"image_min, image_max {list(self.image_range)}, image_mean"
                f" {list(self.image_mean)} and image_std {list(self.image_std)}: expected numbers"
                f" up to {MAX_NORMALIZED}, none of image_std below 1/{MAX_NORMALIZED}"
            )
        problem = _limits_problem(vars(self))
        if problem is not None:
            raise CheckpointError(problem)

    @classmethod
    def read(cls, reader: ConfigReader) -> "ImageConfig":
        """Read the contents of preprocessor_config.json.

        Raises:
            UnsupportedSettingError: a setting asks for a step that is not implemented.
            CheckpointError: a setting is missing or malformed.
        """
        # Without the key the reference implementation crops in another way.
        reader.choice("cropping_method", ("overlap-and-resize",), "resize")
        reader.only("preserve_aspect_ratio", False)
        reader.only("random_interpolation", False)
        reader.only("padding_mask", False)
        reader.only("do_convert_rgb", True)
        # Padding is only ever added with preserve_aspect_ratio. Token ids are read from the
        # tokenizer and compared with these in `tokenizer.py`; class names select code elsewhere.
        reader.harmless("padding_value", "auto_map", "image_processor_type", "processor_class")
        reader.harmless("start_token_id", "end_token_id", "patch_token_id", "column_token_id")

        # What is absent has the default of the reference implementation, which is not what the
        # release sets. There 0 counts as absent in the two ends of the range.
        config = cls(
            tile_size=reader.read("base_input_size", _sides, (336, 336)),
            patch_size=reader.read("patch_size", size, 14),
            overlap_margins=reader.read("overlap_margins", _pair, (4, 4)),
            max_crops=reader.read("max_crops", size, 6),
            min_pixels=reader.read("min_pixels", integer, DEFAULT_MIN_PIXELS),
            max_pixels=reader.read("max_pixels", integer, DEFAULT_MAX_PIXELS),
            pooling_size=(reader.read("pooling_h", size, 2), reader.read("pooling_w", size, 2)),
            use_column_tokens=reader.read("use_column_tokens", boolean, True),
            do_resize=reader.read("do_resize", boolean, True),
            interpolation=reader.choice("interpolation", ("bilinear", "bicubic"), "bicubic"),
            antialias=reader.read("antialias", boolean, True),
            resize_in_float32=reader.read("resize_in_float32", boolean, True),
            normalization_method=reader.choice(
                "normalization_method", ("minmax", "gaussian"), "gaussian"
            ),
            image_range=(
                reader.read("image_min", number, 0.0) or -1.0,
                reader.read("image_max", number, 0.0) or 1.0,
            ),
            image_mean=reader.read("image_mean", _channels, CLIP_MEAN),
            image_std=reader.read("image_std", _channels, CLIP_STD),
        )
        _check_size(reader, config)
        for key, expected in zip(
            ("token_length_h", "token_length_w"), config.window_grid, strict=True
        ):
            found = reader.read(key, integer, expected)
            if found != expected:
                reader.refuse(key, found, f"{expected}, what tile, patch and pooling give")
        return config


def _check_size(reader: ConfigReader, config: ImageConfig) -> None:
    """Read `size`, which repeats the two areas; the reference implementation ignores it."""
    if "size" not in reader:
        return
    section = reader.section("size")
    low, high = section.read("shortest_edge", integer), section.read("longest_edge", integer)
    if (low, high) != (config.min_pixels, config.max_pixels):
        logger.warning(
            "%s has no effect: the areas are min_pixels %d and max_pixels %d",
            reader.name("size"),
            config.min_pixels,
            config.max_pixels,
        )


def _pair(value: Any) -> tuple[int, int]:
    """Accept a list of two integers."""
    if not isinstance(value, list) or len(value) != 2:
        raise TypeError("a list of two integers")
    return integer(value[0]), integer(value[1])


def _sides(value: Any) -> tuple[int, int]:
    """Accept two integers above 0, or one for both sides."""
    height, width = _pair(value) if isinstance(value, list) else (value, value)
    return size(height), size(width)


def _channels(value: Any) -> tuple[float, ...]:
    """Accept a list of numbers, or one for all three channels."""
    return numbers(value) if isinstance(value, list) else (number(value),) * 3
