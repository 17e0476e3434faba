"""Batches for a run: which rows come when, and how many images they hold."""

from dataclasses import dataclass

from ..errors import RequestError
from .data_loader import Batches
from .prepared_examples import TrainingData
from .processes import Processes
from .sampler import BatchPlan, FixedPlan, MixturePlan, Places, SamplerConfig

AHEAD = 2
"""Batches that are made in the background while one is learned."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How rows become the batches of a run."""

    batch_size: int
    """Rows of a batch."""
    seed: int
    """Of the order."""
    text_share: float | None
    """Share of rows without images; None: what the weights of the sources say, and in a single
    file of rows what there is."""
    single_source: bool
    """Whether all rows of a batch are of one source."""
    single_source_batches: int
    """Batches of one source to begin with, if the others are mixed."""
    bucket_batches: int
    """Batches that are drawn at a time, so that rows of like size can share one."""
    pad_to_multiple: int
    """What the length of a batch is made a multiple of."""
    cache_bytes: int
    """Bytes of pixels kept for the next time."""

    def __post_init__(self) -> None:
        if self.single_source_batches < 0:
            raise RequestError("single_source_steps must not be negative")


@dataclass(frozen=True)
class Feed:
    """Batches by number."""

    data: TrainingData
    plan: BatchPlan
    """Of whole batches, all processes' shares together."""
    batches: Batches

    def num_images(self, number: int) -> int:
        """Return the images of a batch, counted from 0."""
        sources = self.data.sources
        return sum(len(sources[source].rows[row].images) for source, row in self.plan.rows(number))


class _SharedPlan(BatchPlan):
    """Of every batch, the rows of this process.

    Rows of a batch are of like size, so all processes have the same to do.
    """

    def __init__(self, whole: BatchPlan, processes: Processes) -> None:
        self._whole = whole
        self._processes = processes
        self.steps_per_epoch = whole.steps_per_epoch

    def rows(self, step: int) -> Places:
        return self._whole.rows(step)[self._processes.rank :: self._processes.count]


class _StagedPlan(BatchPlan):
    """One plan up to a batch, another from there on."""

    def __init__(self, first: BatchPlan, second: BatchPlan, boundary: int) -> None:
        self._first = first
        self._second = second
        self._boundary = boundary
        self.steps_per_epoch = second.steps_per_epoch

    def rows(self, step: int) -> Places:
        # The second plan is not begun from its start: its first rows have been seen.
        return (self._first if step < self._boundary else self._second).rows(step)


def training_feed(data: TrainingData, config: LoaderConfig, processes: Processes) -> Feed:
    """Return batches without end, drawn from all sources, for one of the processes.

    Raises:
        RequestError: a setting is out of range.
        DataError: the share of rows without images cannot be met.
    """
    if config.batch_size % processes.count:
        raise RequestError(
            f"{processes.count} processes cannot share batches of {config.batch_size} rows; set"
            f" batch_size to a multiple of {processes.count}"
        )
    plan = _plan(data, config, config.single_source)
    if config.single_source_batches and not config.single_source:
        first = _plan(data, config, True)
        plan = _StagedPlan(first, plan, config.single_source_batches)
    return _feed(data, plan, config, _SharedPlan(plan, processes))


def validation_feed(data: TrainingData, config: LoaderConfig) -> Feed:
    """Return batches that hold every row once."""
    plan = FixedPlan(data, config.batch_size, config.bucket_batches)
    return _feed(data, plan, config, plan)


def _feed(data: TrainingData, plan: BatchPlan, config: LoaderConfig, own: BatchPlan) -> Feed:
    batches = Batches(
        data, own, pad_to_multiple=config.pad_to_multiple, cache_bytes=config.cache_bytes
    )
    return Feed(data, plan, batches)


def _plan(data: TrainingData, config: LoaderConfig, single_source: bool) -> BatchPlan:
    share = config.text_share
    return MixturePlan(
        data,
        SamplerConfig(
            batch_size=config.batch_size,
            seed=config.seed,
            text_share=_text_share(data) if share is None else share,
            single_source=single_source,
            bucket_batches=config.bucket_batches,
        ),
    )


def _text_share(data: TrainingData) -> float:
    # Two sources of one file are its rows with and without images.
    one_file = len({source.path for source in data.sources}) == 1
    sizes = [len(source.rows) if one_file else source.weight for source in data.sources]
    text = [size for size, source in zip(sizes, data.sources, strict=True) if source.is_text]
    return sum(text) / sum(sizes)
