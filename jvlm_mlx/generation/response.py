"""What an answer consists of: pieces while it is made, the whole at the end."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sizes and speeds of an answer, as far as it has come."""

    prompt_tokens: int
    """Tokens of the prompt, images included."""
    image_tokens: int
    """How many of them stand for images."""
    cached_tokens: int
    """How many of the prompt's tokens a cache had, so that they were not read again."""
    tiles: tuple[int, ...]
    """Tiles of each image, its thumbnail included."""
    generation_tokens: int
    """Tokens produced, the one that ended the answer included."""
    first_token_seconds: float
    """From the call to the first token: images, vision tower, prompt."""
    image_seconds: float
    """How much of it was spent on opening, cutting and encoding images."""
    prompt_tps: float
    """Prompt tokens read per second, without the time for the images."""
    generation_tps: float
    """Tokens per second after the first; 0 until there are two."""
    peak_memory: float
    """Most memory MLX has held in this process so far, in GB (1e9 bytes)."""
    finish_reason: str | None
    """`stop` (a stop token or text), `length`, `cancelled`; None while it goes on."""


@dataclass(frozen=True, kw_only=True)
class GenerationResponse(Counts):
    """One token of an answer."""

    text: str
    """Text that has become certain with this token; may be empty."""
    token: int | None
    """The token; None in the last piece of an answer that was cancelled."""


@dataclass(frozen=True, kw_only=True)
class GenerationResult(Counts):
    """A whole answer."""

    text: str
    """The answer, without stop texts and special tokens."""
    token_ids: tuple[int, ...]
    """All tokens produced, the one that ended the answer included."""

    @classmethod
    def collect(cls, pieces: list[GenerationResponse]) -> "GenerationResult":
        """Put the pieces of an answer together."""
        last = pieces[-1]
        counts = {field.name: getattr(last, field.name) for field in dataclasses.fields(Counts)}
        return cls(
            text="".join(piece.text for piece in pieces),
            token_ids=tuple(piece.token for piece in pieces if piece.token is not None),
            **counts,
        )
