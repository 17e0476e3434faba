"""`verify`: what a conversion cost, in weights and in answers."""

import errno
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.hub import DEMO, locate_checkpoint, origin
from ..checkpoint.loader import load, read_config
from ..checkpoint.model_card import CARD, card_metadata
from ..checkpoint.names import MODULES
from ..checkpoint.reader import CheckpointFiles
from ..checkpoint.saving import CONFIG, RECORD_KEY, config_text, read_record
from ..checkpoint.weights import Checkpoint
from ..config.json_file import read_json
from ..errors import ConversionError, RequestError
from ..files import atomic_file, local_path
from ..progress import Progress
from .conversion_card import conversion_card
from .outputs import (
    Agreement,
    LayerActivation,
    Observation,
    Question,
    agreement,
    built_in_questions,
    largest_activations,
    observe,
    questions_of,
)
from .plan import plan_conversion
from .recipes import ConversionOptions
from .weight_error import TensorError, compare_weights, relative_error, severity

DEFAULT_IMAGE_PROMPT = "Describe this image."


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a conversion may cost; None for no bound."""

    max_weight_error: float | None = None
    """On the relative error of weights of every module."""
    max_kl: float | None = None
    """On the mean divergence over all steps of all answers, in nats."""
    min_top1: float | None = None
    """On the fraction of steps with the same most probable token."""
    min_cosine: float | None = None
    """On the mean cosine of image features."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            # NaN is neither below nor above anything.
            if value is not None and not value >= 0:
                raise RequestError(f"{name} is {value}; it must be a number that is not negative")

    @property
    def need_answers(self) -> bool:
        """Whether any of them is about answers."""
        return not (self.max_kl is self.min_top1 is self.min_cosine is None)


@dataclass(frozen=True)
class Verification:
    """What was measured."""

    source: str
    converted: str
    weights: tuple[TensorError, ...]
    answers: tuple[Agreement, ...]
    """Empty if only weights were compared."""
    bounds: Bounds
    activations: tuple[LayerActivation, ...] = ()
    """Of the converted model, over all questions; empty if only weights were compared."""

    def largest_activations(self) -> dict[str, LayerActivation]:
        """Return the layer of each module whose numbers become largest."""
        by_module = {
            module: [one for one in self.activations if one.module == module] for module in MODULES
        }
        return {
            module: max(layers, key=lambda one: one.largest)
            for module, layers in by_module.items()
            if layers
        }

    def weight_errors(self) -> dict[str, float]:
        """Return the relative error of each module of the model."""
        by_module = {
            module: [one for one in self.weights if one.module == module] for module in MODULES
        }
        return {module: relative_error(errors) for module, errors in by_module.items() if errors}

    @property
    def tokens(self) -> int:
        """Steps of all answers together."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def kl_mean(self) -> float | None:
        """Mean divergence over all steps of all answers."""
        return self._mean([(answer.kl_mean, answer.tokens) for answer in self.answers])

    @property
    def top1(self) -> float | None:
        """Fraction of steps with the same most probable token."""
        return self._mean([(answer.top1, answer.tokens) for answer in self.answers])

    @property
    def feature_cosine(self) -> float | None:
        """Mean cosine of image features."""
        return self._mean(
            [
                (answer.feature_cosine, 1)
                for answer in self.answers
                if answer.feature_cosine is not None
            ]
        )

    @staticmethod
    def _mean(weighted: list[tuple[float, int]]) -> float | None:
        count = sum(weight for _, weight in weighted)
        return sum(value * weight for value, weight in weighted) / count if count else None

    def quality(self) -> dict[str, Any]:
        """Return the figures that a model card shows."""
        return {
            "questions": len(self.answers),
            "tokens": self.tokens,
            "kl_mean": self.kl_mean,
            "top1": self.top1,
            "feature_cosine": self.feature_cosine,
        }

    def violations(self) -> list[str]:
        """Return what exceeds the bounds, in words. NaN is within none."""
        bounds, found = self.bounds, []
        module, worst = max(self.weight_errors().items(), key=lambda item: severity(item[1]))
        for name, value, low, high in (
            (f"weight error of {module}", worst, None, bounds.max_weight_error),
            ("KL divergence", self.kl_mean, None, bounds.max_kl),
            ("top-1 agreement", self.top1, bounds.min_top1, None),
            ("feature cosine", self.feature_cosine, bounds.min_cosine, None),
        ):
            if value is None:
                continue
            if high is not None and not value <= high:
                found.append(f"{name} is {value:.4g}, above {high:g}")
            if low is not None and not value >= low:
                found.append(f"{name} is {value:.4g}, below {low:g}")
        return found


def verify(
    source: str | Path,
    converted: str | Path,
    *,
    revision: str | None = None,
    prompts: Sequence[str] | None = None,
    images: Sequence[Any] | None = None,
    max_tokens: int = 32,
    max_crops: int | None = None,
    dtype: str | None = None,
    weights_only: bool = False,
    bounds: Bounds | None = None,
    show_progress: bool | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare a conversion with its source: all weights, then answers to a few questions.

    Weights are compared a few megabytes at a time. For the answers, one model is in memory at
    a time, never both.

    Args:
        source: folder or repository.
        converted: folder or repository; of any layout, like the source.
        revision: branch, tag or commit of the source.
        prompts: what to ask; with images, about each of them. None for built-in questions,
            or to describe the images given.
        images: images to ask about, of any kind the processor opens.
        max_tokens: steps that each answer is followed for.
        max_crops: most tiles of an image.
        dtype: to load both in; None for what is stored.
        weights_only: whether to ask no questions.
        bounds: what the conversion may cost.
        show_progress: whether downloads show bars.
        progress: called with `comparing`, in bytes, and `source` and `converted`, in questions.

    Raises:
        JvlmError: one of the two cannot be read, they are different models, or the options
            contradict each other.
    """
    bounds = bounds or Bounds()
    if weights_only and (prompts or images or bounds.need_answers):
        raise RequestError("weights_only asks no questions: leave out prompts, images and bounds")
    if max_tokens < 1:
        raise RequestError(f"max_tokens is {max_tokens}; it must be at least 1")
    questions = [] if weights_only else _questions(prompts, images)
    has_image = any(question.image is not None for question in questions)
    if bounds.min_cosine is not None and not has_image:
        raise RequestError(
            "min_cosine is about images, but no question has one: add images, or leave it out"
        )
    folders = [
        locate_checkpoint(source, revision=revision, show_progress=show_progress),
        locate_checkpoint(converted, show_progress=show_progress),
    ]
    ours, its = (
        Checkpoint.open(CheckpointFiles(folder), read_config(folder).model) for folder in folders
    )
    weights = compare_weights(ours, its, progress)
    answers: list[Agreement] = []
    observations: list[Observation] = []
    if questions:
        expected: list[Observation] | None = None
        for stage, folder in zip(("source", "converted"), folders, strict=True):
            observations = _observe(
                folder, questions, dtype, max_tokens, max_crops, expected, stage, progress
            )
            if expected is None:
                expected = observations
        assert expected is not None
        answers = [
            agreement(question.name, one, other)
            for question, one, other in zip(questions, expected, observations, strict=True)
        ]
    return Verification(
        str(source), str(converted), tuple(weights), tuple(answers), bounds,
        largest_activations(observations) if questions else (),
    )  # fmt: skip


def _questions(prompts: Sequence[str] | None, images: Sequence[Any] | None) -> list[Question]:
    if not prompts and not images:
        return built_in_questions()
    return questions_of(prompts or (DEFAULT_IMAGE_PROMPT,), images or ())


def _observe(
    folder: Path,
    questions: Sequence[Question],
    dtype: str | None,
    max_tokens: int,
    max_crops: int | None,
    follow: Sequence[Observation] | None,
    stage: str,
    progress: Progress | None,
) -> list[Observation]:
    """Load a model and question it. It is gone when this returns, before the next one comes."""
    model, processor = load(folder, dtype=dtype)
    return observe(
        model,
        processor,
        questions,
        max_tokens=max_tokens,
        max_crops=max_crops,
        follow=follow,
        activations=follow is not None,  # of the conversion, which is observed second
        stage=stage,
        progress=progress,
    )


def check_card(converted: str, *, weights_only: bool) -> None:
    """Refuse a card that could not be updated, before anything is measured for it.

    Raises:
        RequestError: the conversion is no local folder that this package wrote, or no
            questions are asked.
        ConversionError: the folder cannot be written to.
    """
    if weights_only:
        raise RequestError("the card shows what answers were like: do not leave out the questions")
    if converted == DEMO:
        # What is measured under this name is never a folder of the user's.
        raise RequestError(f"{DEMO} comes with this package, and its card stays as it is")
    folder = local_path(converted, RequestError)
    config_json = read_json(folder / CONFIG) if folder.is_dir() else {}
    if not isinstance(config_json, dict) or read_record(config_json) is None:
        raise RequestError(f"{folder} is no local folder that jvlm convert wrote; it has no card")
    if not os.access(folder, os.W_OK):
        raise ConversionError(f"{folder} cannot be written: {os.strerror(errno.EACCES)}")


def update_card(verification: Verification) -> None:
    """Write the measured quality into the conversion's model card and config.json.

    Raises:
        RequestError: as `check_card`.
        ConversionError: the folder cannot be written to, or what was measured is no number.
    """
    check_card(verification.converted, weights_only=not verification.answers)
    folder = local_path(verification.converted, RequestError)
    quality = verification.quality()
    if not all(math.isfinite(value) for value in quality.values() if value is not None):
        raise ConversionError(
            f"the answers of {folder} are no numbers, so its card is left as it is"
        )
    reference = verification.source.rstrip("/")
    if Path(reference).expanduser().is_dir():
        reference, _ = origin(Path(reference).expanduser())
    config_json = read_json(folder / CONFIG)
    config_json[RECORD_KEY]["quality"] = {"reference": reference, **quality}
    record = read_record(config_json)
    assert record is not None
    checkpoint = Checkpoint.open(CheckpointFiles(folder), read_config(folder).model)
    plan = plan_conversion(
        checkpoint, ConversionOptions(), unpadded_mlp_size=record.unpadded_mlp_size
    )
    with atomic_file(folder / CONFIG, ConversionError) as file:
        file.write_text(config_text(config_json), encoding="utf-8")
    with atomic_file(folder / CARD, ConversionError) as file:
        file.write_text(conversion_card(plan, record, card_metadata(folder)), encoding="utf-8")
