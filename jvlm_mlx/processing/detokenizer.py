"""Token ids back into text while they are being generated."""

import codecs
from collections.abc import Container

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: each of the 256 bytes has a visible character standing for it.

    Bytes that are a visible Latin-1 character stand for themselves. The others, in order, have
    the characters from 256 on.
    """
    alphabet = set(ByteLevel.alphabet())
    moved = [byte for byte in range(256) if chr(byte) not in alphabet]
    return {chr(byte): byte for byte in range(256) if chr(byte) in alphabet} | {
        chr(256 + place): byte for place, byte in enumerate(moved)
    }


_BYTE_OF_CHARACTER = _byte_of_character()


class StreamingDetokenizer:
    """Turns one answer's token ids into text, one at a time. One per request.

    Used like mlx-lm's: `add_token` for each id, `last_segment` for the text that has become
    readable since it was last asked for, `finalize` at the end. Characters whose bytes are
    spread over several tokens appear when they are complete. After `finalize`, `text` is what
    decoding all ids at once gives, special tokens left out, less one leading space: a chat
    template writes "Assistant:" and that space belongs to it, not to the answer, so that the
    answer can be put into the next turn as it is.

    mlx-lm's own class is not used because special tokens show in its text and some ids make it
    raise. Here every id is accepted; one that has no text adds none.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_token_ids: Container[int]) -> None:
        self._backend = backend
        self._special_token_ids = special_token_ids
        self.reset()

    def reset(self) -> None:
        """Forget everything added."""
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._started = False
        self.text = ""
        """All text that is readable by now."""
        self.tokens: list[int] = []
        """All ids added."""
        self.offset = 0
        """Where the next segment starts in `text`."""

    def add_token(self, token: int) -> None:
        """Add the next token id."""
        self.tokens.append(token)
        self._append(self._bytes.decode(self.bytes_of(token)))

    def finalize(self) -> None:
        """Add what is left: bytes of a character that was never completed show as U+FFFD."""
        self._append(self._bytes.decode(b"", final=True))

    @property
    def last_segment(self) -> str:
        """The text since the last time this was read."""
        segment = self.text[self.offset :]
        self.offset = len(self.text)
        return segment

    def _append(self, text: str) -> None:
        if text and not self._started:
            self._started = True
            text = text.removeprefix(" ")
        self.text += text

    def bytes_of(self, token: int) -> bytes:
        """Return the text of a token; nothing for special tokens and unknown ids."""
        if token in self._special_token_ids:
            return b""
        try:
            name = self._backend.id_to_token(token)
        except OverflowError:  # a negative id, or one above 32 bits
            name = None
        if name is None:
            return b""
        try:
            return bytes(_BYTE_OF_CHARACTER[character] for character in name)
        except KeyError:  # an added token is spelled in plain text
            return name.encode()
