"""What a caller may ask of one answer, checked before any work starts."""

import dataclasses
import difflib
import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..config.image_config import ImageOptions
from ..config.json_file import quoted
from ..errors import RequestError

if TYPE_CHECKING:  # for types only: they are made of these options
    from .row import Grammar
    from .sampling import LogitsProcessor, Sampler

KV_BITS = (2, 3, 4, 5, 6, 8)
KV_GROUP_SIZES = (32, 64, 128)

_MAX_INT = 2**31 - 1
_INTEGERS = {
    "max_tokens": (1, _MAX_INT),
    "top_k": (0, _MAX_INT),
    "repetition_context_size": (1, 2**20),
    "seed": (0, 2**64 - 1),
    "max_kv_size": (1, _MAX_INT),
    "prefill_step_size": (1, 2**20),
    "tile_group_size": (1, 2**10),
    "max_memory": (1, 2**50),
    "logprobs": (0, 20),
}
_NUMBERS = {
    "temperature": (0, 100),
    "top_p": (0.001, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-10_000, 10_000),
    "frequency_penalty": (-10_000, 10_000),
}
_MIN_TEMPERATURE = 0.001
"""Below, dividing by it overflows."""
_SYNONYMS = {"temp": "temperature", "max_new_tokens": "max_tokens", "n_logprobs": "logprobs"}
"""Names that other libraries use."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of `stream_generate`, `generate`, `batch_generate` and `ChatSession`.

    Raises:
        RequestError: a value has the wrong type or is out of range.
    """

    max_tokens: int = 256
    """Most tokens of the answer; the model's context may end it sooner."""
    temperature: float = 0.0
    """0 takes the most probable token every time; up to 100."""
    top_p: float = 1.0
    """Sample among the most probable tokens that have this fraction of the probability together."""
    top_k: int = 0
    """Sample among this many most probable tokens; 0 for all."""
    min_p: float = 0.0
    """Leave out tokens below this fraction of the most probable token's probability."""
    repetition_penalty: float | None = None
    """Divide the logits of recent tokens by this; 1 or None for none."""
    repetition_context_size: int = 20
    """How many recent text tokens the three penalties look at."""
    presence_penalty: float | None = None
    """Subtract this from the logit of every recent token."""
    frequency_penalty: float | None = None
    """Subtract this from a token's logit for every time it occurred recently."""
    seed: int | None = None
    """Makes sampling repeatable; None draws a fresh one. The process's own random state is
    neither used nor changed."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    stop_token_ids: frozenset[int] | None = None
    """Tokens that end the answer; None for the checkpoint's own."""
    repetition_guard: bool = True
    """End an answer that goes round in circles, with the finish reason `repetition`."""
    prompt_lookup: bool = False
    """Draft the next tokens from where the last ones occurred before, in prompt or answer, and
    verify several in one pass: the same answer sooner, where much of it is copied. Only for an
    answer that is made alone, without sampling, penalties, `logprobs` or a `grammar`, and with all
    of a plain KV cache; it switches itself off where it does not pay, or where the device rounds
    several tokens at once otherwise than one by one."""
    logprobs: int | None = None
    """Give the log probability of each token, and of so many most probable ones; None for none."""
    sampler: "Sampler | None" = None
    """From log probabilities (1, vocabulary) to a token (1,), as in mlx-lm; instead of the
    options above."""
    logits_processors: "tuple[LogitsProcessor, ...]" = ()
    """Each called with all text tokens so far and logits (1, vocabulary), as in mlx-lm; after the
    penalties."""
    schema: Mapping[str, Any] | None = None
    """JSON Schema that the answer must satisfy: what it may say next is limited to that. It is
    valid JSON, unless its finish reason says that it was cut. Needs the extra `structured`."""
    grammar: "Grammar | None" = None
    """What the answer may say; see `engine.Grammar`. For one answer only."""
    max_kv_size: int | None = None
    """Most tokens in the KV cache. The prompt with its images always stays, the oldest tokens of
    the answer leave."""
    kv_bits: int | None = None
    """Quantize the KV cache to this many bits, after the prefill."""
    kv_group_size: int | None = None
    """Values that share a scale: 32, 64 or 128; None for what fits the head size."""
    prefill_step_size: int = 2048
    """Prompt tokens that go through the decoder at once."""
    tile_group_size: int = 4
    """Most tiles that go through the vision tower at once; on a CPU it is one."""
    max_memory: int | None = None
    """Bytes for weights, KV cache, images, prompt and caches together. So many tiles are encoded
    at once as fit, whatever `tile_group_size` says, and perhaps fewer tokens are prefilled at
    once than `prefill_step_size`. A request that cannot fit is refused. None for no limit on a
    CPU, and for nine tenths of what the system recommends on a GPU, with a warning above it."""
    wired_limit: int | Literal["none"] | None = None
    """Bytes that the system keeps in memory for the GPU meanwhile; None for what it recommends,
    `none` to leave its limit alone."""
    max_crops: int | None = None
    """Most tiles of an image beside its thumbnail; None for the checkpoint's own."""
    min_pixels: int | None = None
    """Area below which an image is enlarged; None for the checkpoint's own."""
    max_pixels: int | None = None
    """Area above which an image is reduced; None for the checkpoint's own."""
    do_resize: bool | None = None
    """Whether images are first brought to whole patches within the two areas; None for the
    checkpoint's own. The script of the release sets it to False unless it limits the area."""

    @classmethod
    def of(
        cls,
        options: "GenerationOptions | Mapping[str, Any] | None",
        overrides: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
    ) -> "GenerationOptions":
        """Return options that may be given as an object, a mapping, or by name.

        Args:
            options: given as a whole.
            overrides: single options, which count more.
            defaults: of the checkpoint, for options that are not given; an object gives all.

        Raises:
            RequestError: there is no such option, or a value makes no sense.
        """
        if isinstance(options, GenerationOptions):
            given = {name: getattr(options, name) for name in _NAMES}
        elif options is None or isinstance(options, Mapping):
            given = {**(defaults or {}), **_known(options or {})}
        else:
            raise RequestError(
                f"options must be GenerationOptions or a mapping, found {_type(options)}"
            )
        return cls(**{**given, **_known(overrides)})

    def __post_init__(self) -> None:
        for name, (low, high) in _INTEGERS.items():
            self._set(name, _integer(name, getattr(self, name), low, high))
        for name, limits in _NUMBERS.items():
            self._set(name, _number(name, getattr(self, name), *limits))
        if 0 < self.temperature < _MIN_TEMPERATURE:
            raise RequestError(
                f"temperature is {self.temperature}; it must be 0, or from {_MIN_TEMPERATURE} on"
            )
        self._set("stop", _texts("stop", self.stop))
        if self.stop_token_ids is not None:
            ids = _sequence("stop_token_ids", self.stop_token_ids)
            checked = [_integer("stop_token_ids", one, 0, _MAX_INT) for one in ids]
            self._set("stop_token_ids", frozenset(checked))
        if self.schema is not None and not isinstance(self.schema, Mapping):
            raise RequestError(f"schema must be a mapping: {_shown(self.schema)}")
        if self.schema is not None and self.grammar is not None:
            raise RequestError("schema and grammar exclude each other")
        for name in ("repetition_guard", "prompt_lookup"):
            if not isinstance(value := getattr(self, name), bool):
                raise RequestError(f"{name} must be true or false: {_shown(value)}")
        _check_choice("kv_bits", self.kv_bits, KV_BITS)
        _check_choice("kv_group_size", self.kv_group_size, KV_GROUP_SIZES)
        if self.wired_limit not in (None, "none"):
            self._set("wired_limit", _integer("wired_limit", self.wired_limit, 1, 2**50))
        self._set(
            "logits_processors", tuple(_sequence("logits_processors", self.logits_processors))
        )
        for name, one in (
            ("sampler", self.sampler),
            *(("logits_processors", one) for one in self.logits_processors),
        ):
            if one is not None and not callable(one):
                raise RequestError(f"{name} must be a function, found {_type(one)}")
        _ = self.image_options  # refuses what makes no sense
        if self.kv_bits is not None and self.max_kv_size is not None:
            raise RequestError(
                "kv_bits and max_kv_size exclude each other: a rotating cache is not quantized"
            )

    @property
    def has_plain_cache(self) -> bool:
        """Whether the KV cache is neither rotating nor quantized."""
        return self.max_kv_size is None and self.kv_bits is None

    @property
    def image_options(self) -> ImageOptions:
        """What is asked of images."""
        return ImageOptions(
            max_crops=self.max_crops,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            do_resize=self.do_resize,
        )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


_NAMES = tuple(field.name for field in dataclasses.fields(GenerationOptions))
_CAN_BE_NONE = {
    field.name for field in dataclasses.fields(GenerationOptions) if field.default is None
}

JSON_OPTIONS = frozenset(_NAMES) - {"sampler", "logits_processors", "grammar"}
"""Names of the options that a file can hold."""


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by their own names."""
    known = {}
    for name, value in options.items():
        own = _SYNONYMS.get(name, name)
        if own not in _NAMES:
            close = difflib.get_close_matches(str(name), _NAMES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; see GenerationOptions"
            raise RequestError(f"there is no option {quoted(name)}{hint}")
        known[own] = value
    return known


def _integer(name: str, value: Any, low: int, high: int) -> int | None:
    if value is None and name in _CAN_BE_NONE:
        return None
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise RequestError(f"{name} must be an integer: {_shown(value)}")
    _check_range(name, number, low, high)
    return number


def _number(name: str, value: Any, low: float, high: float) -> float | None:
    if value is None and name in _CAN_BE_NONE:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise RequestError(f"{name} must be a number: {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    _check_range(name, number, low, high)
    return number


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is in no range
        raise RequestError(f"{name} is {quoted(value)}; it must be from {low} to {high}")


def _check_choice(name: str, value: Any, choices: tuple[int, ...]) -> None:
    if value is not None and (isinstance(value, bool) or value not in choices):
        raise RequestError(f"{name} is {quoted(value)}; it must be one of {choices}")


def _texts(name: str, value: Any) -> tuple[str, ...]:
    # A single text is a sequence of characters, and that is never what was meant.
    texts = (value,) if isinstance(value, str) else tuple(_sequence(name, value))
    if not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{name} must be texts: {_shown(value)}")
    if "" in texts:
        raise RequestError(f"{name}: an empty text would end every answer at once")
    return texts


def _sequence(name: str, value: Any) -> Iterable[Any]:
    if value is None:
        return ()
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise RequestError(f"{name} must be a list: {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return f"found {quoted(value)}, {_type(value)}"


def _type(value: Any) -> str:
    return f"type {type(value).__name__}"
