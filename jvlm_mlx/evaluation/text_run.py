"""A model on a text set: choices are compared by their likelihoods, other answers generated."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from ..errors import DataError
from ..generation.batching import batch_generate
from ..generation.requests import BatchRequest, BatchResponse
from ..generation.response import GenerationResult
from ..model import Model
from ..processing.processor import Processor
from .benchmarks import Benchmark
from .likelihood import raw_prompt, score_continuations
from .runner import Asked, Question, TextOnly, digest_of
from .text_sets import STOP, TextQuestion, default_shots, read_text_set, with_examples

_CHUNK = 64
"""Questions whose choices are scored between two writes."""


class TextSet:
    """The questions of a text set and their prompts.

    Args:
        path: the published file, Parquet or JSON Lines.
        benchmark: which it is of.
        settings: what else answers depend on, as a text.
        shots: how many examples precede a question; lm-eval's number unless given.
        examples: file of the split that examples are taken from.
        limit: how many questions to draw at random.
        seed: of the drawing.

    Raises:
        DataError: a file cannot be used, or there are too few examples.
    """

    def __init__(
        self,
        path: Path,
        benchmark: Benchmark,
        settings: str,
        *,
        shots: int | None = None,
        examples: Path | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        self.shots = default_shots(benchmark) if shots is None else shots
        if self.shots and examples is None:
            raise DataError(
                f"{benchmark.name} shows {self.shots} examples first: give the file of the split"
                " that has them with --examples, or --shots 0"
            )
        everything = read_text_set(path, benchmark)
        self.total = len(everything)
        if limit is not None and limit < self.total:
            chosen = sorted(random.Random(seed).sample(range(self.total), limit))
            everything = [everything[number] for number in chosen]
        self._texts = everything
        shown = read_text_set(examples, benchmark) if examples and self.shots else []
        self.questions = []
        for number, text in enumerate(everything):
            prompt = with_examples(text, shown, self.shots)
            digest = digest_of(settings, [prompt, *text.choices], [])
            self.questions.append(Question(number, text.row, [prompt], digest))

    def asked(
        self, load: Callable[[], tuple[Model, Processor]], batch_size: int, options: dict[str, Any]
    ) -> Asked:
        """Return what answers these questions by their places, as `asked_of` does."""

        def asked(places: Sequence[int]) -> Iterator[tuple[int, BatchResponse]]:
            compared = [place for place in places if self._texts[place].choices]
            for start in range(0, len(compared), _CHUNK):
                yield from self._compare(load(), compared[start : start + _CHUNK])
            generated = [place for place in places if not self._texts[place].choices]
            requests = (self._request(place) for place in generated)
            if generated:
                settings = {**options, "stop": (STOP,), "batch_size": batch_size}
                for response in batch_generate(*load(), requests, **settings):
                    yield generated[response.index], response

        return asked

    def _prompt(self, place: int) -> str:
        return str(self.questions[place].parts[0])

    def _request(self, place: int) -> BatchRequest:
        return BatchRequest(prompt=raw_prompt(self._prompt(place)))

    def _compare(
        self, loaded: tuple[Model, Processor], places: Sequence[int]
    ) -> Iterator[tuple[int, BatchResponse]]:
        texts: list[TextQuestion] = [self._texts[place] for place in places]
        pairs = [
            (self._prompt(place), choice)
            for place, text in zip(places, texts, strict=True)
            for choice in text.choices
        ]
        contexts, continuations = zip(*pairs, strict=True)
        scored = iter(score_continuations(*loaded, contexts, continuations))
        for place, text in zip(places, texts, strict=True):
            logprobs = [round(next(scored).logprob, 6) for _ in text.choices]
            result = cast(GenerationResult, TextOnly(json.dumps(logprobs)))
            yield place, BatchResponse(index=place, result=result, error=None)
