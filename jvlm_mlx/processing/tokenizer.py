"""Text to token ids and back, keeping text that only spells a special token apart from it."""

import re
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
import tokenizers.decoders
from tokenizers import AddedToken

from .. import _mlx_lm
from ..config.config_reader import ConfigReader, integer
from ..config.json_file import quoted
from ..errors import CheckpointError, PromptError, UnsupportedSettingError
from ..files import reason
from .detokenizer import StreamingDetokenizer
from .image_tokens import ImageTokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_PLACEHOLDER = "<|image|>"
"""Marks one image in a prompt; replaced by the image's own tokens."""

_IMAGE_TOKENS = {
    "start": "<im_start>",
    "end": "<im_end>",
    "patch": "<im_patch>",
    "column": "<im_col>",
    "image": IMAGE_PLACEHOLDER,
}
_STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")
MAX_TOKEN_CHARACTERS = 1000
"""Of a special token, of which all prefixes are looked for in messages."""
_REFUSED = re.compile(rb'"type"\s*:\s*"(Precompiled|[^"]*\\)')
"""The normalizer whose tables can end the process, or a type that is spelled to hide it."""


class Tokenizer:
    """The checkpoint's byte-level tokenizer. All methods may be called from any thread.

    Everything is read from the checkpoint's `tokenizer.json` and `tokenizer_config.json`; no
    code of the checkpoint is ever run.
    """

    bos_token_id: int
    """The token every prompt starts with: the tokenizer's own, else its end of text."""
    eos_token_id: int | None
    """The end of text, if the tokenizer names one."""
    pad_token_id: int | None
    """What the tokenizer pads with, else the end of text; `ModelInputs` have -1 instead."""
    vocab_size: int
    """Tokens of the vocabulary, without those added to it; `len` counts all."""
    stop_token_ids: frozenset[int]
    """Ids that end an answer."""
    image_token_ids: ImageTokenIds
    """Ids of the tokens that an image is made of in a prompt."""
    special_tokens: dict[str, int]
    """Spelling and id of every token that is never text."""
    named_tokens: dict[str, str]
    """`bos_token`, `eos_token`, ... and their spelling, as chat templates know them."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", stop_token_ids: Iterable[int]) -> None:
        """Take `tokenizer` over; what it wraps is changed, so it is of no other use after this.

        Args:
            tokenizer: a byte-level tokenizer of the transformers library.
            stop_token_ids: ids that end an answer according to the model's config.

        Raises:
            CheckpointError: it lacks a token of images, or has no token to start with.
            UnsupportedSettingError: it is not byte-level.
        """
        backend = tokenizer.backend_tokenizer
        if not isinstance(backend.decoder, tokenizers.decoders.ByteLevel):
            kind = type(backend.decoder).__name__
            raise UnsupportedSettingError(
                f"tokenizer.json: decoder {kind} is not supported; supported: ByteLevel"
            )
        backend.no_truncation()
        backend.no_padding()
        self.image_token_ids = ImageTokenIds(
            **{role: _required_id(backend, token) for role, token in _IMAGE_TOKENS.items()}
        )
        # Some tools save these tokens without the mark that makes them special.
        stop_tokens = [one for one in _STOP_TOKENS if backend.token_to_id(one) is not None]
        added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
        unmarked = [
            added.get(one, AddedToken(one)) for one in [*_IMAGE_TOKENS.values(), *stop_tokens]
        ]
        for token in unmarked:
            token.special = True
        backend.add_special_tokens(unmarked)
        # From here on the backend takes special tokens for text, always: `encode` cuts the
        # text at the genuine ones itself. A switch thrown per call would not be thread-safe.
        backend.encode_special_tokens = True
        self._backend = backend

        self._flags: dict[str, AddedToken] = {}
        self.special_tokens = {}
        for token_id, token in backend.get_added_tokens_decoder().items():
            if token.special:
                if len(token.content) > MAX_TOKEN_CHARACTERS:
                    raise CheckpointError(
                        f"the tokenizer has a special token of {len(token.content)} characters;"
                        f" expected at most {MAX_TOKEN_CHARACTERS}"
                    )
                self.special_tokens[token.content] = token_id
                self._flags[token.content] = token
        self._special_token_ids = frozenset(self.special_tokens.values())
        self._special_pattern = self._pattern(self.special_tokens)

        self.named_tokens = {
            name: token
            for name, token in tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        }
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is None and eos is None:
            raise CheckpointError("tokenizer_config.json has neither a bos_token nor an eos_token")
        self.bos_token_id = eos if bos is None else bos
        self.eos_token_id = eos
        self.pad_token_id = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.vocab_size = backend.get_vocab_size(with_added_tokens=False)
        self.stop_token_ids = (
            frozenset(stop_token_ids)
            | (frozenset() if eos is None else {eos})
            | {self.special_tokens[token] for token in stop_tokens}
        )

    @classmethod
    def load(cls, folder: Path, stop_token_ids: Iterable[int]) -> "Tokenizer":
        """Read the tokenizer of a checkpoint folder.

        transformers' classes are named outright: its general one, which takes tokenizer.json
        as it is, or Qwen's, which builds the same from vocab.json and merges.txt. So neither an
        unknown model type nor an `auto_map` in the checkpoint has a say.

        Raises:
            CheckpointError: files are missing or broken, or the tokenizer does not fit the
                model (see the class).
        """
        # Imported here: transformers takes longer than everything a refused request needs.
        _mlx_lm.import_mlx_lm()
        from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

        kind = PreTrainedTokenizerFast
        if not (folder / "tokenizer.json").is_file():
            if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
                raise CheckpointError(f"{folder} has no tokenizer.json")
            kind = Qwen2Tokenizer
        elif (found := _REFUSED.search(_read(folder / "tokenizer.json"))) is not None:
            raise UnsupportedSettingError(
                f"tokenizer.json: type {quoted(found[1].decode(errors='replace'))} is not supported"
            )
        try:
            tokenizer = kind.from_pretrained(folder, local_files_only=True)
        except BaseException as error:  # of many kinds, the panics of the Rust library among them
            raise CheckpointError(
                f"the tokenizer files in {folder} cannot be read: {_summary(error)}"
            ) from error
        return cls(tokenizer, stop_token_ids)

    def encode(
        self,
        text: str,
        literals: Collection[int] = (),
        special_tokens: Iterable[str] | None = None,
    ) -> list[int]:
        """Return the token ids of a text. Nothing is added in front or behind.

        The ids are those of the tokenizers library for the whole text at once. Added tokens
        that are not marked special (Qwen3's `<think>`, say) are part of its vocabulary, and
        are found in anybody's text.

        Args:
            text: the text.
            literals: positions in `text` that no special token may cover: what spells one
                there is text. (A set is the fastest.)
            special_tokens: spellings to take for special tokens; None: all of the tokenizer's.

        Raises:
            PromptError: the text contains half of a surrogate pair, which is no character.
        """
        pattern = self._special_pattern if special_tokens is None else self._pattern(special_tokens)
        ids: list[int] = []
        start = position = 0  # of the text not encoded yet; of the search
        while (match := pattern.search(text, position)) is not None:
            if literals and any(index in literals for index in range(*match.span())):
                position = match.start() + 1
                continue
            flags = self._flags[match.group()]
            before = text[start : match.start()]
            ids += self._encode_text(before.rstrip() if flags.lstrip else before)
            ids.append(self.special_tokens[match.group()])
            start = position = match.end()
            if flags.rstrip:
                start = position = len(text) - len(text[start:].lstrip())
        return ids + self._encode_text(text[start:])

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; ids that no tokenizer has, like padding, have none."""
        known = [token for token in map(int, ids) if 0 <= token < 2**32]
        text: str = self._backend.decode(known, skip_special_tokens=skip_special_tokens)
        return text

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Return the id of a token, or the ids of several; None of what is none."""
        if isinstance(tokens, str):
            return self._backend.token_to_id(tokens)
        return [self._backend.token_to_id(token) for token in tokens]

    def __len__(self) -> int:
        """Count all tokens, added ones included."""
        size: int = self._backend.get_vocab_size()
        return size

    def is_longer(self, text: str, num_tokens: int) -> bool:
        """Whether a text is certainly longer than so many tokens, without encoding it."""
        # Most texts need no look at the vocabulary. Normalization may join four characters to one.
        return len(text) > num_tokens and len(text) > 4 * num_tokens * self._longest_token

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token; of bytes, a character may have several."""
        return max(map(len, self._backend.get_vocab()))

    def detokenizer(self) -> StreamingDetokenizer:
        """Return a new detokenizer for one answer."""
        return StreamingDetokenizer(self._backend, self._special_token_ids)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; none for special tokens and unknown ids."""
        return self.detokenizer().bytes_of(token)

    def to_json(self) -> str:
        """Return the whole tokenizer as the text of a `tokenizer.json`."""
        return self._backend.to_str()

    def check_image_ids(self, config: ConfigReader) -> None:
        """Compare the token ids that preprocessor_config.json repeats with the tokenizer's.

        Raises:
            CheckpointError: one differs; the two files belong to different models.
        """
        for role in ("start", "end", "patch", "column"):
            expected = getattr(self.image_token_ids, role)
            key = f"{role}_token_id"
            found = config.read(key, integer, expected)
            if found != expected:
                raise CheckpointError(
                    f"{config.name(key)} is {found}, but {_IMAGE_TOKENS[role]} has id {expected}"
                    " in tokenizer.json; take both files from the same checkpoint"
                )

    def _encode_text(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text contains {text[error.start]!r}, half of a surrogate pair and no"
                " character; remove it"
            ) from None
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except BaseException as error:  # as in `load`
            raise PromptError(f"the tokenizer cannot read the text: {_summary(error)}") from error
        return ids

    def _pattern(self, tokens: Iterable[str]) -> re.Pattern[str]:
        """A pattern that finds special tokens as the tokenizers library does: longest first."""
        alternatives = []
        for token in sorted(tokens, key=len, reverse=True):
            spelling = re.escape(token)
            if self._flags[token].single_word:
                spelling = rf"(?<!\w){spelling}(?!\w)"
            alternatives.append(spelling)
        return re.compile("|".join(alternatives) or "(?!)")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from None


def _summary(error: BaseException) -> str:
    """Return the first line of what an error says; what is none goes its way.

    The Rust library's PanicException is no Exception.
    """
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return reason(error)


def _required_id(backend: tokenizers.Tokenizer, token: str) -> int:
    token_id: Any = backend.token_to_id(token)
    if not isinstance(token_id, int):
        raise CheckpointError(
            f"the tokenizer has no token {token}; use the tokenizer.json of a Jina-VLM checkpoint"
        )
    return token_id
