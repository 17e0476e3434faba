"""From tokens to text as it may be shown: whole characters, up to a stop text."""

from collections.abc import Sequence

from ..processing.tokenizer import Tokenizer


class AnswerText:
    """Turns tokens into text piece by piece.

    Text that could still become part of a character or of a stop text is held back until it is
    clear what it is.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._stop = stop
        self._held_back = ""
        self.stopped = False
        """Whether a stop text has been produced."""

    def add(self, token: int) -> str:
        """Take a token; return the text that is certain by now, perhaps none."""
        self._detokenizer.add_token(token)
        return self._certain(self._detokenizer.last_segment)

    def finish(self) -> str:
        """Return what was held back, for an answer that ends here."""
        self._detokenizer.finalize()
        text = self._certain(self._detokenizer.last_segment) + self._held_back
        self._held_back = ""
        return text

    def _certain(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held_back + text
        ends = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held_back = True, ""
            return text[: min(ends)]
        kept = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held_back = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
