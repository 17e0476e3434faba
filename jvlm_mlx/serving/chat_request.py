"""A chat completion request: every parameter is honored, ignored because it cannot matter, or
refused by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.image_config import MAX_TILES, ImageOptions
from ..config.json_file import quoted
from .api_error import ApiError, invalid

MAX_STOPS = 4
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1000
"""Entries of `logit_bias`."""

_IGNORED = frozenset({
    "user", "store", "metadata", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prompt_cache_options", "service_tier", "verbosity",
    "reasoning_effort", "parallel_tool_calls",
})  # fmt: skip
"""Parameters that cannot change an answer of this model."""
_INERT: dict[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "moderation": (),
    "web_search_options": (),
    "functions": (),
    "function_call": ("none",),
    "best_of": (1,),
    "suffix": ("",),
}
"""Parameters that are refused unless they have one of these values, or null."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A checked request. Images are still addresses; see `ImagePolicy`."""

    model: str
    messages: list[dict[str, Any]]
    """Roles and content; image parts keep `image_url` and `detail`."""
    options: dict[str, Any]
    """By the names of `GenerationOptions`; what the client did not say is missing."""
    logit_bias: dict[int, float]
    image_options: ImageOptions
    """For all images; `detail` of one counts more."""
    stream: bool
    include_usage: bool
    choices: int
    top_logprobs: int | None
    """Alternatives at each token, or None for no log probabilities."""

    @classmethod
    def read(cls, body: Any) -> "ChatRequest":
        """Check the body of a request.

        Raises:
            ApiError: names the parameter and says what is expected.
        """
        reader = Reader(body)
        messages = reader.read("messages", _messages)
        if messages is None:
            raise invalid("messages is missing; give at least one", "messages")
        stream = bool(reader.read("stream", boolean))
        stream_options = reader.read("stream_options", _mapping)
        if stream_options is not None and not stream:
            raise invalid("stream_options needs stream: true", "stream_options")
        top_logprobs = _top_logprobs(reader)
        options = generation_options(reader)
        schema = reader.read("response_format", _schema)
        if body.get("response_format") is not None:
            options["schema"] = schema  # None, for text, counts more than a default
        request = cls(
            model=reader.read("model", _text) or "",
            messages=messages,
            options=options,
            logit_bias=reader.read("logit_bias", _logit_bias) or {},
            image_options=ImageOptions(
                max_crops=reader.read("max_crops", integer(0, MAX_TILES)),
                do_resize=reader.read("do_resize", boolean),
            ),
            stream=stream,
            include_usage=bool((stream_options or {}).get("include_usage")),
            choices=reader.read("n", integer(1, MAX_CHOICES)) or 1,
            top_logprobs=top_logprobs,
        )
        _refuse_tools(reader)
        reader.finish()
        return request


class Reader:
    """Reads parameters by name; null is as good as missing. Tracks keys that were never read."""

    def __init__(self, body: Any, without: Sequence[str] = ()) -> None:
        if not isinstance(body, dict):
            raise invalid("the body must be a JSON object")
        self._body = {name: value for name, value in body.items() if name not in without}
        self._read: set[str] = set()

    def read(self, name: str, check: Callable[[Any, str], Any]) -> Any:
        """Return a checked parameter; None for null or nothing."""
        self._read.add(name)
        value = self._body.get(name)
        return None if value is None else check(value, name)

    def finish(self) -> None:
        """Refuse what would change the answer and is not implemented."""
        for name, value in self._body.items():
            if name in self._read or name in _IGNORED or value is None:
                continue
            if name in _INERT and value in _INERT[name]:
                continue
            supported = f"; supported: {_INERT[name][0]!r}" if _INERT.get(name) else ""
            raise invalid(
                f"{quoted(name)} is not supported by this server{supported}",
                name[:100], "unsupported_parameter",
            )  # fmt: skip


def generation_options(reader: Reader) -> dict[str, Any]:
    """Read what `GenerationOptions` has under the same or another name."""
    tokens = reader.read("max_tokens", integer(1, 2**31 - 1))
    longer_name = reader.read("max_completion_tokens", integer(1, 2**31 - 1))
    seed = reader.read("seed", integer(-(2**63), 2**64 - 1))
    options = {
        "max_tokens": tokens if longer_name is None else longer_name,
        "temperature": reader.read("temperature", _number(0, 2)),
        "top_p": reader.read("top_p", _number(0, 1)),
        "top_k": reader.read("top_k", integer(0, 2**31 - 1)),
        "min_p": reader.read("min_p", _number(0, 1)),
        "presence_penalty": reader.read("presence_penalty", _number(-2, 2)),
        "frequency_penalty": reader.read("frequency_penalty", _number(-2, 2)),
        "repetition_penalty": reader.read("repetition_penalty", _number(0.01, 10)),
        # Negative seeds are allowed there; both halves of the range stay apart.
        "seed": None if seed is None else seed % 2**64,
        "stop": reader.read("stop", _stop),
    }
    return {name: value for name, value in options.items() if value is not None}


def _top_logprobs(reader: Reader) -> int | None:
    wanted = reader.read("logprobs", boolean)
    count: int | None = reader.read("top_logprobs", integer(0, MAX_TOP_LOGPROBS))
    if count is not None and not wanted:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    return (count or 0) if wanted else None


def _refuse_tools(reader: Reader) -> None:
    tools = reader.read("tools", lambda value, _: value)
    choice = reader.read("tool_choice", lambda value, _: value)
    if tools and choice != "none":
        raise invalid(
            'tools are not supported by this model; leave them out, or set tool_choice: "none"',
            "tools", "unsupported_parameter",
        )  # fmt: skip


def _messages(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise invalid("messages must be a list of at least one message", name)
    return [_message(message, f"{name}[{index}]") for index, message in enumerate(value)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise invalid(f"{where} must be an object with role and content", where)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(
            f"{where}.role is {quoted(role)}; expected {', '.join(_ROLES)}", f"{where}.role"
        )
    for key in ("tool_calls", "function_call", "audio"):
        if message.get(key):
            raise invalid(f"{where}.{key} is not supported by this model", f"{where}.{key}")
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, list):
        content = [_part(part, f"{where}.content[{i}]", role) for i, part in enumerate(content)]
    elif not isinstance(content, str):
        raise invalid(f"{where}.content must be a text or a list of parts", f"{where}.content")
    return {"role": _ROLES[role], "content": content}


def _part(given: Any, where: str, role: str) -> dict[str, Any]:
    part: dict[str, Any] = given if isinstance(given, dict) else {}
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url" and role == "user":
        address, detail = part.get("image_url"), None
        if isinstance(address, dict):
            detail = address.get("detail")
            address = address.get("url")
        if not isinstance(address, str) or not address:
            raise invalid(f"{where}.image_url.url must be a text", f"{where}.image_url")
        if detail not in (None, "auto", "low", "high", "original"):
            raise invalid(
                f"{where}.image_url.detail is {quoted(detail)}; expected auto, low or high",
                f"{where}.image_url.detail",
            )
        return {"type": "image_url", "image_url": address, "detail": detail or "auto"}
    expected = "text or image_url" if role == "user" else "text"
    raise invalid(f"{where} must be a part of type {expected}", where)


def _schema(value: Any, name: str) -> dict[str, Any] | None:
    """Read which JSON Schema a response format asks for; None for text."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        wanted = value.get("json_schema")
        schema = wanted.get("schema") if isinstance(wanted, dict) else None
        if not isinstance(schema, dict):
            raise invalid(f"{name}.json_schema.schema must be an object", f"{name}.json_schema")
        return schema
    raise invalid(f"{name}.type must be text, json_object or json_schema", f"{name}.type")


def _logit_bias(value: Any, name: str) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIAS:
        raise invalid(f"{name} must be an object of at most {MAX_LOGIT_BIAS} token ids", name)
    bias = {}
    for key, number in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10):
            raise invalid(f"{name} has {quoted(key)}, which is no token id", name)
        bias[int(key)] = _number(-100, 100)(number, f"{name}[{key}]")
    return bias


def _stop(value: Any, name: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(one, str) and one for one in texts):
        raise invalid(f"{name} must be a text or a list of texts, none of them empty", name)
    if len(texts) > MAX_STOPS:
        raise invalid(f"{name} has {len(texts)} texts; at most {MAX_STOPS} are allowed", name)
    return tuple(texts)


def boolean(value: Any, name: str) -> bool:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise invalid(f"{name} is {quoted(value)}; expected true or false", name)
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise invalid(f"{name} is {quoted(value)}; expected a text", name)
    return value


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"{name} is {quoted(value)}; expected an object", name)
    return value


def integer(low: int, high: int) -> Callable[[Any, str], int]:
    """Return what accepts a whole number of a range."""

    def check(value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _out_of_range(value, name, "a whole number", low, high)
        return value

    return check


def _number(low: float, high: float) -> Callable[[Any, str], float]:
    def check(value: Any, name: str) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # NaN is in no range.
        if not is_number or not low <= value <= high:
            raise _out_of_range(value, name, "a number", low, high)
        return float(value)

    return check


def _out_of_range(value: Any, name: str, kind: str, low: float, high: float) -> ApiError:
    return invalid(f"{name} is {quoted(value)}; expected {kind} from {low} to {high}", name)
