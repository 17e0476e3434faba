"""What a model answers, recorded so that another can be compared with it later.

Only one of the two is in memory at a time: what is kept of the first are probabilities of the
tokens it chose, and the features of the images.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ..generation import device
from ..generation.engine import Engine
from ..generation.options import GenerationOptions
from ..generation.prompt import prepare_prompt
from ..generation.row import Row
from ..generation.sampling import Sampler, greedy
from ..model import Model
from ..model.activations import (
    connector_activations,
    decoder_activations,
    largest_per_layer,
    tower_activations,
)
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.processor import Processor
from ..progress import Progress, ProgressEvent

PREFILL_STEP = 1024


@dataclass(frozen=True)
class Question:
    """One prompt, perhaps with an image."""

    name: str
    prompt: str
    image: Any = None


@dataclass(frozen=True)
class LayerActivation:
    """How large the numbers in a layer become while a prompt is read."""

    module: str
    """`tower`, `connector` or `decoder`."""
    layer: int | None
    """None for the connector."""
    largest: float
    """The largest magnitude; infinite if a number is not finite."""


@dataclass(frozen=True, eq=False)
class Observation:
    """The outputs of a model for one question."""

    tokens: tuple[int, ...]
    """The most probable tokens; the answer, if no other model's was followed."""
    logprobs: npt.NDArray[np.float32]
    """(L, vocabulary) of each step of the answer."""
    features: npt.NDArray[np.float32] | None
    """(N, hidden size) of the image."""
    activations: "tuple[LayerActivation, ...]" = ()
    """Of every layer; empty if nobody asked for them."""


@dataclass(frozen=True)
class Agreement:
    """How two models differ on one question."""

    name: str
    tokens: int
    """Steps of the answer."""
    kl_mean: float
    """Kullback-Leibler divergence of the converted model's next-token distribution from the
    source's, in nats; the mean over steps."""
    kl_max: float
    """The largest. Both are NaN if one of the models gives NaN."""
    top1: float
    """Fraction of steps in which both have the same most probable token."""
    first_divergence: int | None
    """The first step in which they do not; None if they write the same answer."""
    feature_cosine: float | None
    """Mean cosine of image features; None without an image."""
    feature_cosine_min: float | None
    """The smallest."""


def built_in_questions() -> list[Question]:
    """Return a few questions that need no files."""
    shapes, page = _shapes(), _page()
    return [
        Question("arithmetic", "What is 17 times 23? Explain each step."),
        Question("explanation", "Explain in two sentences why the sky is blue."),
        Question("multilingual", "Übersetze ins Chinesische: Das Meer ist heute ruhig."),
        Question("shapes", "Describe the shapes and their colors.", shapes),
        Question("page", "Read all text in this image.", page),
    ]


def questions_of(prompts: Sequence[str], images: Sequence[Any]) -> list[Question]:
    """Return each prompt with each image, or alone if there are none."""
    return [
        Question(f"{prompt[:24]} ({image})" if images else prompt[:24], prompt, image)
        for image in images or (None,)
        for prompt in prompts
    ]


def observe(
    model: Model,
    processor: Processor,
    questions: Sequence[Question],
    *,
    max_tokens: int,
    max_crops: int | None = None,
    follow: Sequence[Observation] | None = None,
    activations: bool = False,
    stage: str = "questions",
    progress: Progress | None = None,
) -> list[Observation]:
    """Ask a model questions and record its outputs.

    With `follow`, observations of another model, this one is given the other's answers token by
    token instead of its own; as long as both agree, these are its own. With `activations`, every
    layer is looked into as well, in another pass over the prompt.
    """
    options = GenerationOptions(max_crops=max_crops)
    observations = []
    for index, question in enumerate(questions):
        images = None if question.image is None else [question.image]
        prepared = prepare_prompt(processor, question.prompt, images, None, options)
        path = follow[index].tokens if follow else None
        stops = frozenset() if path else processor.tokenizer.stop_token_ids
        row = Row(
            max_tokens=len(path) if path else max_tokens,
            sampler=greedy if path is None else _following(path),
            observer=lambda logprobs, _: (logprobs,),
        )
        observation = device.run(partial(_observe, model, prepared, row, stops))
        if activations:
            layers = device.run(partial(_activations, model, prepared))
            observation = replace(observation, activations=layers)
        observations.append(observation)
        if progress:
            progress(ProgressEvent(stage, index + 1, len(questions), "question"))
    return observations


def agreement(name: str, expected: Observation, found: Observation) -> Agreement:
    """Compare the outputs of two models for the same question and the same answer."""
    logp, logq = (one.logprobs.astype(np.float64) for one in (expected, found))
    divergence = np.sum(np.exp(logp) * (logp - logq), axis=-1)
    # Where one of the two gives NaN, its argmax means nothing.
    same = (np.array(expected.tokens) == np.array(found.tokens)) & ~np.isnan(divergence)
    cosines = None
    if expected.features is not None and found.features is not None:
        ours, theirs = (one.astype(np.float64) for one in (expected.features, found.features))
        lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        cosines = np.sum(ours * theirs, axis=-1) / np.maximum(lengths, np.finfo(float).tiny)
    return Agreement(
        name=name,
        tokens=len(same),
        # Rounding may bring the divergence of equal distributions below zero. NaN stays NaN,
        # which Python's own max would make zero.
        kl_mean=float(np.maximum(divergence.mean(), 0.0)),
        kl_max=float(np.maximum(divergence.max(), 0.0)),
        top1=float(same.mean()),
        first_divergence=None if same.all() else int(same.argmin()),
        feature_cosine=None if cosines is None else float(cosines.mean()),
        feature_cosine_min=None if cosines is None else float(cosines.min()),
    )


def _observe(
    model: Model, prepared: PreparedPrompt[PromptImage], row: Row, stops: Collection[int]
) -> Observation:
    """Prefill and decode; unlike an answer, with whatever numbers a damaged model gives."""
    features, logits, cache = _prefill(model, prepared)
    engine = Engine(model)
    engine.add([row], cache, logits)
    tokens: list[int] = []
    logprobs: list[npt.NDArray[np.float32]] = []
    while engine.rows and not (tokens and tokens[-1] in stops):
        for token in engine.step():
            logprobs.append(np.array(token.observed[0][0]))
            tokens.append(int(logprobs[-1].argmax()))
    engine.remove(engine.rows)
    mx.clear_cache()
    return Observation(tuple(tokens), np.stack(logprobs), features)


def largest_activations(observations: Sequence[Observation]) -> tuple[LayerActivation, ...]:
    """Return the largest magnitude of each layer over all questions."""
    found: dict[tuple[str, int | None], float] = {}
    for observation in observations:
        for one in observation.activations:
            key = one.module, one.layer
            found[key] = max(found.get(key, 0.0), one.largest)
    return tuple(LayerActivation(*key, largest) for key, largest in found.items())


def _activations(
    model: Model, prepared: PreparedPrompt[PromptImage]
) -> tuple[LayerActivation, ...]:
    """Look into every layer while the prompt goes through the model, group by group of tiles."""
    inputs = prepared.inputs
    embeddings = model.decoder.embed(mx.array(inputs.input_ids))
    found: list[LayerActivation] = []
    if inputs.pixel_values is not None and inputs.image_masks is not None:
        assert inputs.image_input_idx is not None
        plan = model.plan(inputs.image_input_idx, inputs.input_ids.shape[1])
        pixels, masks = inputs.pixel_values[0], inputs.image_masks[0]
        groups = []
        for group in plan.groups:
            tiles, kept = mx.array(pixels[group.tiles]), mx.array(masks[group.tiles])
            indices = mx.array(group.patches), mx.array(group.inside)
            layers = largest_per_layer(tower_activations(model, tiles))
            found += [LayerActivation("tower", *item) for item in layers.items()]
            features = model.vision_tower(tiles)
            largest = connector_activations(model, features, kept, *indices)
            groups.append(model.connector(features, kept, *indices))
            mx.eval(largest, groups)
            found.append(LayerActivation("connector", None, float(np.array(largest))))
        embeddings = model.merge(embeddings, mx.concatenate(groups), plan.sources)
    layers = largest_per_layer(decoder_activations(model, embeddings))
    found += [LayerActivation("decoder", *item) for item in layers.items()]
    mx.clear_cache()
    return tuple(found)


def _following(path: Sequence[int]) -> Sampler:
    """Return a sampler that gives these tokens, whatever the probabilities are."""
    tokens = iter(path)
    return lambda _: mx.array([next(tokens)])


def _prefill(
    model: Model, prepared: PreparedPrompt[PromptImage]
) -> tuple[npt.NDArray[np.float32] | None, mx.array, list[Any]]:
    """Return the image's features, the logits (1, vocabulary) after the prompt, and the cache."""
    inputs = prepared.inputs
    embeddings = model.decoder.embed(mx.array(inputs.input_ids))
    features = None
    if inputs.pixel_values is not None and inputs.image_masks is not None:
        assert inputs.image_input_idx is not None
        plan = model.plan(inputs.image_input_idx, inputs.input_ids.shape[1])
        groups = []
        for group in model.encode_groups(inputs.pixel_values, inputs.image_masks, plan):
            mx.eval(group)
            groups.append(group)
        merged = mx.concatenate(groups)
        embeddings = model.merge(embeddings, merged, plan.sources)
        features = np.array(merged.astype(mx.float32))
    cache = model.make_cache()
    for start in range(0, embeddings.shape[1], PREFILL_STEP):
        hidden = model.decoder(embeddings[:, start : start + PREFILL_STEP], cache)
        mx.eval(hidden)
    return features, model.head(hidden[:, -1]), cache


def _shapes() -> Image.Image:
    image = Image.new("RGB", (560, 420), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 60, 220, 240), fill="red", outline="black", width=4)
    draw.rectangle((280, 40, 500, 200), fill="blue")
    draw.polygon([(120, 380), (260, 260), (400, 380)], fill="green")
    draw.line((430, 240, 540, 400), fill="orange", width=12)
    return image


def _page() -> Image.Image:
    image = Image.new("RGB", (700, 500), "white")
    draw = ImageDraw.Draw(image)
    lines = (
        "INVOICE No. 2047", "", "3 x lamp      59.70", "1 x table    120.00",
        "delivery       9.90", "", "total        189.60", "due by 31 March",
    )  # fmt: skip
    for number, line in enumerate(lines):
        draw.text((60, 40 + 52 * number), line, fill="black", font_size=32)
    return image
