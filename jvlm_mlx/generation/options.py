"""What a caller may ask of one answer, checked before any work starts."""

import math
from dataclasses import dataclass

from ..config.image_config import ImageOptions
from ..errors import RequestError

KV_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of `stream_generate` and `generate`, by these names."""

    max_tokens: int = 256
    """Most tokens of the answer; the model's context may end it sooner."""
    temperature: float = 0.0
    """0 takes the most likely token every time, as the original does by default."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that have this share of the probability together."""
    top_k: int = 0
    """Sample among this many likeliest tokens; 0 for all."""
    min_p: float = 0.0
    """Leave out tokens below this share of the likeliest token's probability."""
    repetition_penalty: float | None = None
    """Divide the scores of recent tokens by this; 1 or None for none."""
    repetition_context_size: int = 20
    """How many recent words' tokens the three penalties look at."""
    presence_penalty: float | None = None
    """Subtract this from the score of every recent token."""
    frequency_penalty: float | None = None
    """Subtract this from a token's score for every time it occurred recently."""
    seed: int | None = None
    """Makes sampling repeatable; None draws a fresh one. The process's own random state is
    neither used nor changed."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    stop_token_ids: frozenset[int] | None = None
    """Tokens that end the answer; None for the checkpoint's own."""
    max_kv_size: int | None = None
    """Most tokens whose keys and values are kept. The prompt with its images always stays, the
    oldest tokens of the answer leave."""
    kv_bits: int | None = None
    """Quantize keys and values to this many bits, once the prompt has been read."""
    kv_group_size: int | None = None
    """Values that share a scale; None for the largest that fits the head size."""
    prefill_step_size: int = 2048
    """Prompt tokens that are read at once."""
    tile_group_size: int = 4
    """Tiles that go through the vision tower at once."""
    max_memory: int | None = None
    """Bytes for weights, keys and values, images, prompt and caches together. So many tiles are
    encoded at once as fit, whatever `tile_group_size` says, and perhaps fewer tokens are read than
    `prefill_step_size`. A request that cannot fit is refused. None for no limit."""
    max_crops: int | None = None
    """Most tiles of an image beside its thumbnail; None for the checkpoint's own."""
    min_pixels: int | None = None
    """Area below which an image is enlarged; None for the checkpoint's own."""
    max_pixels: int | None = None
    """Area above which an image is reduced; None for the checkpoint's own."""
    do_resize: bool | None = None
    """Whether images are first brought to whole patches within the two areas; None for the
    checkpoint's own. The script of the release sets it to False unless it limits the area."""

    def __post_init__(self) -> None:
        # A single text is a sequence of letters, and that is never what was meant.
        stop: object = self.stop
        texts = (stop,) if isinstance(stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", texts)
        if self.stop_token_ids is not None:
            object.__setattr__(self, "stop_token_ids", frozenset(self.stop_token_ids))
        if "" in self.stop:
            raise RequestError("stop: an empty text would end every answer at once")
        for name in ("max_tokens", "repetition_context_size", "prefill_step_size",
                     "tile_group_size", "max_memory", "max_kv_size", "kv_group_size"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} is {value}; it must be at least 1")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
                     "frequency_penalty"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise RequestError(f"{name} is {value}; it must be a finite number")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise RequestError(f"seed is {self.seed}; it must be from 0 to 2**64 - 1")
        for name in ("temperature", "top_k"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise RequestError(f"min_p is {self.min_p}; it must be from 0 to 1")
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            raise RequestError(
                f"repetition_penalty is {self.repetition_penalty}; it must be above 0"
            )
        if self.kv_bits is not None and self.kv_bits not in KV_BITS:
            raise RequestError(f"kv_bits is {self.kv_bits}; it must be one of {KV_BITS}")
        if self.kv_bits is not None and self.max_kv_size is not None:
            raise RequestError(
                "kv_bits and max_kv_size exclude each other: a rotating cache is not quantized"
            )

    @property
    def image_options(self) -> ImageOptions:
        """What is asked of images."""
        return ImageOptions(
            max_crops=self.max_crops,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            do_resize=self.do_resize,
        )
