"""What generation_config.json says: stop ids, and how to sample where a request does not say."""

from dataclasses import dataclass
from typing import Any

from .config_reader import ConfigReader, boolean, count, integer, number, positive, size

NO_TOKENS: frozenset[int] = frozenset()
DEFAULT_TOP_K = 50


@dataclass(frozen=True)
class GenerationDefaults:
    """Defaults of the checkpoint; None where it says nothing. A request's own options win."""

    stop_token_ids: frozenset[int]
    """Token ids that end an answer."""
    do_sample: bool | None
    """False or None: greedy, whatever the numbers below are."""
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    max_new_tokens: int | None

    @classmethod
    def read(cls, reader: ConfigReader) -> "GenerationDefaults":
        """Read the contents of generation_config.json; of an empty object if there is no file.

        Raises:
            CheckpointError: a value is of another kind, or out of range.
        """
        defaults = cls(
            stop_token_ids=reader.read("eos_token_id", token_ids, NO_TOKENS),
            do_sample=reader.read("do_sample", boolean, None),
            temperature=reader.read("temperature", _not_negative, None),
            top_p=reader.read("top_p", _fraction, None),
            top_k=reader.read("top_k", count, None),
            min_p=reader.read("min_p", _fraction, None),
            repetition_penalty=reader.read("repetition_penalty", positive, None),
            max_new_tokens=reader.read("max_new_tokens", size, None),
        )
        if reader.read("num_beams", size, 1) > 1:
            reader.refuse("num_beams", reader.read("num_beams", size), "1")
        return defaults

    @property
    def options(self) -> dict[str, Any]:
        """What a request's options are where it does not say, by their names; empty for the usual.

        Where it samples, what is absent has the value of Hugging Face's generation config.
        """
        found: dict[str, Any] = {}
        if self.do_sample:
            found = {
                "temperature": 1.0 if self.temperature is None else self.temperature,
                "top_k": DEFAULT_TOP_K if self.top_k is None else self.top_k,
                "top_p": self.top_p,
                "min_p": self.min_p,
            }
        found |= {
            "repetition_penalty": self.repetition_penalty,
            "max_tokens": self.max_new_tokens,
        }
        return {name: value for name, value in found.items() if value is not None}


def token_ids(value: Any) -> frozenset[int]:
    """Accept a token id or a list of them."""
    values = value if isinstance(value, list) else [value]
    return frozenset(integer(item) for item in values)


def _not_negative(value: Any) -> float:
    if number(value) < 0:
        raise TypeError("a number that is not negative")
    return float(value)


def _fraction(value: Any) -> float:
    if not 0 <= number(value) <= 1:
        raise TypeError("a number from 0 to 1")
    return float(value)
