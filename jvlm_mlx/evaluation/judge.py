"""Answers judged by a language model behind any OpenAI-compatible endpoint.

CharXiv and MathVista are scored so. Their official judge is a GPT-4 model; scores of another judge,
or of another judging prompt, compare with each other only.
"""

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field

from ..errors import RequestError
from .cells import OPTIONS, Row, is_given, list_of, text_of
from .multiple_choice import option_of

_KEY_VARIABLE = "OPENAI_API_KEY"
_TIMEOUT = 120
_INSTRUCTION = (
    "You grade answers to questions about images. Compare the answer with the reference. Units,"
    " rounding to the precision of the reference, and wording do not matter; the meaning must be"
    " the same. Reply with one character: 1 if the answer is right, 0 if it is not."
)


@dataclass(frozen=True)
class Judge:
    """A chat model that decides whether an answer is right."""

    url: str
    """Of the API, such as http://localhost:8080/v1."""
    model: str
    key: str = field(default="", repr=False)

    @classmethod
    def from_url(cls, url: str, model: str) -> "Judge":
        """Return a judge whose key, if it needs one, is in the variable OPENAI_API_KEY.

        Raises:
            RequestError: the address is no HTTP address.
        """
        if not url.startswith(("http://", "https://")):
            raise RequestError(f"judge {url!r}: an address like http://localhost:8080/v1 is due")
        return cls(url.rstrip("/"), model, os.environ.get(_KEY_VARIABLE, ""))

    def score(self, row: Row, prediction: str) -> tuple[str, float]:
        """Return what was understood of an answer, and 1 or 0.

        Raises:
            RequestError: the endpoint cannot be asked, or does not answer 1 or 0.
        """
        direct = exact_match(row, prediction)
        if direct:
            return direct, 1.0
        verdict = self._ask(
            f"Question: {text_of(row['question'])}\n\nReference: {text_of(row['answer'])}\n\n"
            f"Answer: {prediction}"
        ).strip()
        if verdict[:1] not in ("0", "1"):
            raise RequestError(
                f"judge {self.model} at {self.url}: said {verdict[:40]!r} about question"
                f" {row['index']} instead of 1 or 0"
            )
        return prediction.strip(), float(verdict[0])

    def _ask(self, text: str) -> str:
        body = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": 8,
            "messages": [
                {"role": "system", "content": _INSTRUCTION},
                {"role": "user", "content": text},
            ],
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                content = json.load(response)
            return str(content["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            raise RequestError(f"judge at {self.url}: {error.code} {error.reason}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise RequestError(f"judge at {self.url} cannot be asked: {reason}") from error
        except (KeyError, IndexError, TypeError):
            raise RequestError(f"judge at {self.url}: no chat completion came back") from None


def exact_match(row: Row, prediction: str) -> str | None:
    """Return what an answer says if it needs no judge because it plainly is the right one.

    MathVista's rule: the right option, the same whole or decimal number, or the same text.
    """
    said = prediction.strip()
    if is_given(row, "answer_option") and is_given(row, "choices"):
        choices = dict(zip(OPTIONS, list_of(row["choices"]), strict=False))
        option = option_of(prediction, choices)
        return option if option == text_of(row["answer_option"]) else None
    reference = text_of(row["answer"])
    if row.get("answer_type") in ("integer", "float"):
        number = int if row["answer_type"] == "integer" else float
        try:
            return said if number(said) == number(reference) else None
        except ValueError:
            return None
    return said if said == reference else None
