"""What a caller may ask of one conversion, checked before any work starts."""

from dataclasses import dataclass

from ..checkpoint.quantization import Quantization
from ..config.dtypes import FLOAT_DTYPES
from ..errors import RequestError
from .recipes import RECIPES, Recipe, base_quantization

DEFAULT_RECIPE = "uniform"


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """Options of `convert`, by these names."""

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
            raise RequestError(f"dtype {self.dtype} is not one of {', '.join(FLOAT_DTYPES)}")
        if not self.quantize:
            for name in ("q_bits", "q_group_size", "q_mode", "recipe"):
                if getattr(self, name) is not None:
                    raise RequestError(f"{name} is for quantization; add quantize (-q), too")
        if self.recipe is not None and self.recipe not in RECIPES:
            raise RequestError(f"recipe {self.recipe} is not one of {', '.join(RECIPES)}")
        if self.quantize:
            self.quantization  # noqa: B018 - refuses what does not exist

    @property
    def recipe_name(self) -> str:
        """The recipe that counts."""
        return self.recipe or DEFAULT_RECIPE

    @property
    def rules(self) -> Recipe:
        """The rules of the recipe."""
        return RECIPES[self.recipe_name]

    @property
    def quantization(self) -> Quantization:
        """The format that the recipe starts from."""
        return base_quantization(self.q_bits, self.q_group_size, self.q_mode or "affine")
