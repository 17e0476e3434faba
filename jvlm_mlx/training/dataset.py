"""Reads, checks and tokenizes all examples before training starts; pixels stay in their files."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config.image_config import ImageOptions
from ..errors import DataError, JvlmError
from ..processing.processor import Processor
from ..processing.tiling import ImageLayout
from ..progress import Progress, ProgressEvent
from .encoding import ConversationEncoder
from .example_images import decoded_size, image_size
from .examples import TEXT, Source, read_conversation, read_lines

MAX_SHOWN = 20
"""Bad examples that an error lists; the rest are counted."""


@dataclass(frozen=True, eq=False, slots=True)
class ExampleImage:
    """An image that is not opened yet."""

    source: str
    """Path, or `data:` or `file:` URL."""
    layout: ImageLayout
    """How it will be tiled."""


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """One conversation. N tokens before its images are put in."""

    source: int
    """Which of the sources it is of."""
    line: int
    """In its file, from 1."""
    token_ids: NDArray[np.int32]
    """(N,) one placeholder for every image."""
    labels: NDArray[np.int32]
    """(N,) the token to be predicted in this place, from the ones before it; -1: nothing."""
    images: tuple[ExampleImage, ...]

    @property
    def length(self) -> int:
        """Tokens with images put in."""
        return len(self.token_ids) + sum(one.layout.num_tokens - 1 for one in self.images)

    @property
    def num_tiles(self) -> int:
        """Tiles of all images."""
        return sum(one.layout.num_tiles for one in self.images)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """All examples of all sources, with what they have been prepared for."""

    sources: tuple[Source, ...]
    examples: tuple[Example, ...]
    """Source after source, in the order of their files."""
    sizes: NDArray[np.int64]
    """(examples, 2) tiles and length of each."""
    processor: Processor
    image_options: ImageOptions
    digest: str
    """The same for the same examples, sources, limits and way to tokenize; files of images are
    not looked into."""


def read_examples(
    sources: Sequence[Source],
    processor: Processor,
    *,
    max_seq_length: int,
    image_options: ImageOptions,
    decode_images: bool = False,
    progress: Progress | None = None,
) -> TrainingData:
    """Check every example of every source, and tokenize all texts.

    Of an image, only the start of its file is read, unless `decode_images` is set.

    Args:
        sources: from `examples.read_sources`.
        processor: of the checkpoint to be trained.
        max_seq_length: most tokens of an example, those of images and the last stop token
            included.
        image_options: for all images.
        decode_images: whether every image is decoded once, to find the damaged ones.
        progress: called with the bytes read.

    Raises:
        DataError: files cannot be read, or examples cannot be trained on. Names the files, and
            then the examples with file and line, a line each, up to a number of them; or says why
            the checkpoint's chat template cannot be trained with.
        RequestError: an image option contradicts the checkpoint's.
    """
    config = processor.image_processor.config.override(image_options)  # or say what is wrong
    checker = _Checker(processor, max_seq_length, image_options, decode_images)
    file_sizes = [_file_size(source.path) for source in sources]
    examples: list[Example] = []
    digest = hashlib.sha256(repr((max_seq_length, config)).encode())
    before = 0
    for number, (source, file_size) in enumerate(zip(sources, file_sizes, strict=True)):
        read = 0
        digest.update(repr((source.name, source.kind, source.weight)).encode())
        try:
            for line_number, line in read_lines(source.path):
                example = checker.example(source, number, line_number, line)
                if example is not None:
                    examples.append(example)
                digest.update(line)
                read += len(line)
                if progress is not None:
                    done = before + min(read, file_size)
                    progress(ProgressEvent("checking examples", done, sum(file_sizes), "B"))
            if not read:
                raise DataError("has no examples")
        except DataError as error:
            checker.refuse_file(f"{source.path} {error}")
        before += file_size
    checker.raise_if_bad()
    for example in examples:
        digest.update(example.token_ids.tobytes())
    if progress is not None:
        progress(ProgressEvent("checking examples", before, before, "B"))
    sizes = np.array([(example.num_tiles, example.length) for example in examples], np.int64)
    return TrainingData(
        tuple(sources), tuple(examples), sizes, processor, image_options, digest.hexdigest()
    )


class _Checker:
    """Prepares examples, and collects what is wrong with the bad ones."""

    def __init__(
        self,
        processor: Processor,
        max_seq_length: int,
        image_options: ImageOptions,
        decode_images: bool,
    ) -> None:
        self._processor = processor
        self._max_seq_length = max_seq_length
        self._image_options = image_options
        self._encoder = ConversationEncoder(processor)
        self._size_of = decoded_size if decode_images else image_size
        self._sizes: dict[str, tuple[int, int]] = {}
        self._layouts: dict[tuple[int, int], ImageLayout] = {}
        self._bad_files: list[str] = []
        self._num_bad = 0
        self._lines: list[str] = []

    def refuse_file(self, line: str) -> None:
        """Note a file that has no examples or cannot be read."""
        self._bad_files.append(" ".join(line.split()))

    def raise_if_bad(self) -> None:
        """Report all that was bad.

        Raises:
            DataError: something was.
        """
        lines = self._bad_files
        if self._num_bad:
            what = "an example" if self._num_bad == 1 else f"{self._num_bad} examples"
            heading = f"{what} cannot be trained on; fix or remove what is listed here:"
            lines = [*lines, heading, *self._lines]
        more = self._num_bad - len(self._lines)
        if more:
            lines = [*lines, f"and {more} more"]
        if lines:
            raise DataError("\n".join(lines))

    def example(self, source: Source, number: int, line_number: int, line: bytes) -> Example | None:
        """Return an example, or note why there is none."""
        try:
            example = self._read(number, line_number, line, source.path.parent)
            if source.kind is not None and (source.kind == TEXT) == bool(example.images):
                has = "an image" if example.images else "no image"
                raise DataError(f"has {has}, but the source is of kind {source.kind}")
            return example
        except JvlmError as error:
            self._num_bad += 1
            if len(self._lines) < MAX_SHOWN:
                self._lines.append(" ".join(f"{source.path}:{line_number}: {error}".split()))
            return None

    def _read(self, number: int, line_number: int, line: bytes, folder: Path) -> Example:
        conversation = read_conversation(line, folder)
        images = tuple(map(self._image, conversation.images))
        token_ids, labels = self._encoder.encode(conversation)
        example = Example(number, line_number, token_ids, labels, images)
        if example.length > self._max_seq_length:
            of_images = sum(image.layout.num_tokens for image in images)
            raise DataError(
                f"has {example.length} tokens, {of_images} of them for images; at most"
                f" {self._max_seq_length} are allowed"
            )
        return example

    def _image(self, source: str) -> ExampleImage:
        size = self._sizes.get(source)
        if size is None:
            size = self._sizes[source] = self._size_of(source)
        layout = self._layouts.get(size)
        if layout is None:
            layout = self._processor.image_layout(*size, self._image_options)
            self._layouts[size] = layout
        return ExampleImage(source, layout)


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # reading it will say more
