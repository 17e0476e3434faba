"""From tokens to text as it may be shown: whole characters, up to a stop text."""

from collections.abc import Sequence

from mlx_lm.generate import TextStateMachine

from ..text.tokenizer import Tokenizer


class AnswerText:
    """Turns tokens into text piece by piece.

    Text that could still become part of a character or of a stop text is held back until it is
    clear what it is.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._machine = TextStateMachine({"normal": [(text, None) for text in stop]})
        self._state = self._machine.make_state("normal")
        self.stopped = False
        """Whether a stop text has been produced."""

    def add(self, token: int) -> str:
        """Take a token; return the text that is certain by now, perhaps none."""
        self._detokenizer.add_token(token)
        return self._pass_on(self._detokenizer.last_segment)

    def finish(self) -> str:
        """Return what was held back, for an answer that ends here."""
        if self.stopped:
            return ""
        self._detokenizer.finalize()
        text = self._pass_on(self._detokenizer.last_segment)
        if self._state[0] is not None:
            self._state, held_back, _ = self._machine.flush(self._state)
            text += held_back
        return text

    def _pass_on(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        self._state, segments = self._machine.split(self._state, text)
        self.stopped = self._state[0] is None
        return "".join(segment for _, segment in segments)
