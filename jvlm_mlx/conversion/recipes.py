"""What may be asked of a conversion: types, formats of quantization, and recipes as data."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..checkpoint.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES, Quantization
from ..config.dtypes import FLOAT_DTYPES
from ..config.json_file import quoted
from ..errors import RequestError

AS_IS, BASE, MORE = "as is", "base", "more"
"""What a rule gives a layer: no quantization, the bits asked for, or the next step above them."""


@dataclass(frozen=True)
class Recipe:
    """A named set of rules."""

    summary: str
    rules: tuple[tuple[str, str], ...]
    """Patterns of layer paths, as in a shell, each with what it gives. The first that fits
    counts. `{last}` is the number of the last decoder layer. A tied head is looked up
    as `lm_head`, since the head is what suffers."""


# Its 588 inputs are no multiple of any group, and it is 0.03 % of all weights. Norms, the
# position table and the padding marks are no layers, so no rule can ever reach them.
_NEVER = (("vision_tower.patch_embedding", AS_IS),)

RECIPES = {
    "uniform": Recipe(
        summary="the same bits everywhere",
        rules=(*_NEVER, ("*", BASE)),
    ),
    "mixed": Recipe(
        summary="more bits for the first and last decoder layer, the head and the connector",
        rules=(
            *_NEVER,
            # Errors made here pass through all other layers and grow on their way.
            ("decoder.layers.0.*", MORE),
            # Nothing comes after these to even errors out: they act on the tokens at once.
            ("decoder.layers.{last}.*", MORE),
            ("lm_head", MORE),
            # All that the decoder learns of an image goes through here; it is 1.5 % of all
            # weights, so that precision is nearly free.
            ("connector.*", MORE),
            ("*", BASE),
        ),
    ),
    "language-only": Recipe(
        summary="decoder, embedding and head; images are seen at full precision",
        rules=(
            ("vision_tower.*", AS_IS),
            ("connector.*", AS_IS),
            ("*", BASE),
        ),
    ),
}
DEFAULT_RECIPE = "uniform"
QUANT_PREDICATES = {"mixed_4_6": ("mixed", 4)}
"""mlx-lm's names of mixed formats, with recipe and bits, where both give most layers the same bits
and those that matter most the same. Its other names go up by steps that no recipe takes."""

_MORE_AFFINE_BITS = {2: 4, 3: 5, 4: 6, 5: 8, 6: 8, 8: 8}
_FLOAT_FORMATS = {
    "mxfp4": Quantization(group_size=32, bits=4, mode="mxfp4"),
    "mxfp8": Quantization(group_size=32, bits=8, mode="mxfp8"),
    "nvfp4": Quantization(group_size=16, bits=4, mode="nvfp4"),
}
MODES = ("affine", *_FLOAT_FORMATS)
DEFAULT_BITS, DEFAULT_GROUP_SIZE = 4, 64


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """Options of `convert`, by these names, checked before any work starts."""

    dtype: str | None = None
    """`float32`, `float16` or `bfloat16` for everything that is not quantized; None keeps what
    is stored."""
    quantize: bool = False
    """Whether to quantize at all."""
    q_bits: int | None = None
    """Bits per weight; None for 4, or for those of the mode."""
    q_group_size: int | None = None
    """Inputs that share a scale; None for 64, or for the mode's."""
    q_mode: str | None = None
    """`affine` (also for None), `mxfp4`, `mxfp8` or `nvfp4`."""
    recipe: str | None = None
    """One of `RECIPES`; None for `uniform`."""
    dequantize: bool = False
    """Whether quantized layers of the source become ordinary ones first."""

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in FLOAT_DTYPES:
            raise RequestError(
                f"dtype {quoted(self.dtype)} is not one of {', '.join(FLOAT_DTYPES)}"
            )
        if not self.quantize:
            for name in ("q_bits", "q_group_size", "q_mode", "recipe"):
                if getattr(self, name) is not None:
                    raise RequestError(f"{name} is for quantization; add quantize (-q), too")
        if self.recipe is not None and self.recipe not in RECIPES:
            raise RequestError(f"recipe {quoted(self.recipe)} is not one of {', '.join(RECIPES)}")
        if self.quantize:
            self.quantization  # noqa: B018 - refuses what does not exist

    @property
    def recipe_name(self) -> str:
        """The recipe that counts."""
        return self.recipe or DEFAULT_RECIPE

    @property
    def quantization(self) -> Quantization:
        """The format that the recipe starts from."""
        return base_quantization(self.q_bits, self.q_group_size, self.q_mode or "affine")


def from_quant_predicate(name: str) -> tuple[str, int]:
    """Return recipe and bits that one of mlx-lm's names of a mixed format means.

    Raises:
        RequestError: no recipe means the same.
    """
    if name not in QUANT_PREDICATES:
        raise RequestError(
            f"no recipe means the same as quant-predicate {quoted(name)}; use"
            f" {', '.join(QUANT_PREDICATES)}, or recipe {', '.join(RECIPES)} and q_bits"
        )
    return QUANT_PREDICATES[name]


def base_quantization(bits: int | None, group_size: int | None, mode: str) -> Quantization:
    """Return the format of a mode; None is 4 bits, groups of 64, or what a floating-point mode has.

    Raises:
        RequestError: MLX has no such format.
    """
    if mode not in MODES:
        raise RequestError(f"q_mode {quoted(mode)} is not one of {', '.join(MODES)}")
    if mode != "affine":
        fixed = _FLOAT_FORMATS[mode]
        if bits not in (None, fixed.bits) or group_size not in (None, fixed.group_size):
            raise RequestError(
                f"{mode} has {fixed.bits} bits in groups of {fixed.group_size};"
                " leave q_bits and q_group_size out"
            )
        return fixed
    bits = DEFAULT_BITS if bits is None else bits
    group_size = DEFAULT_GROUP_SIZE if group_size is None else group_size
    if bits not in AFFINE_BITS:
        raise RequestError(
            f"q_bits {quoted(bits)} is not one of {', '.join(map(str, AFFINE_BITS))}"
        )
    if group_size not in AFFINE_GROUP_SIZES:
        choices = ", ".join(map(str, AFFINE_GROUP_SIZES))
        raise RequestError(f"q_group_size {quoted(group_size)} is not one of {choices}")
    return Quantization(group_size=group_size, bits=bits, mode=mode)


def more_quantization(base: Quantization) -> Quantization:
    """Return the next step above a format: two more bits; of floating-point formats mxfp8."""
    if base.mode != "affine":
        return _FLOAT_FORMATS["mxfp8"]
    return Quantization(
        group_size=base.group_size, bits=_MORE_AFFINE_BITS[base.bits], mode=base.mode
    )


def choose_quantization(
    recipe: Recipe, layer: str, base: Quantization, *, last_layer: int, tied_head: bool
) -> Quantization | None:
    """Return how a recipe quantizes a layer, or None for not at all.

    `last_layer` is the number of the last decoder layer; with `tied_head` the embedding is the
    head, too.
    """
    if tied_head and layer == "decoder.embedding":
        layer = "lm_head"
    for pattern, level in recipe.rules:
        if fnmatchcase(layer, pattern.format(last=last_layer)):
            return {AS_IS: None, BASE: base, MORE: more_quantization(base)}[level]
    return None
