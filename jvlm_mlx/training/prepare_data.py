"""Reads, checks and tokenizes all rows of a mixture before training starts."""

import hashlib
from pathlib import Path

import numpy as np

from ..errors import DataError, JvlmError
from ..processing.processor import Processor
from ..processing.tiling import ImageLayout
from ..progress import Progress, ProgressEvent
from .data_limits import DataLimits
from .encoding import ConversationEncoder
from .examples import read_conversation, read_lines
from .image_files import decoded_size, image_size
from .mixture import TEXT, Mixture, Source
from .prepared_examples import ExampleImage, PreparedSource, TrainingData, TrainingRow

"""Called with bytes read and bytes in all."""

MAX_SHOWN = 20
"""Bad rows that an error lists; the rest are counted."""


def prepare_data(
    mixture: Mixture,
    processor: Processor,
    limits: DataLimits,
    *,
    decode_images: bool = False,
    progress: Progress | None = None,
) -> TrainingData:
    """Check every row of every source, and cut all texts into tokens.

    Of an image, only the beginning of its file is read, unless `decode_images` is set.

    Args:
        mixture: from `read_mixture`.
        processor: of the checkpoint to be trained.
        limits: on rows and images.
        decode_images: whether every image is decoded once, to find the damaged ones.
        progress: told how far reading has come.

    Raises:
        DataError: files cannot be read, or rows cannot be trained on. Names the files, and then
            the rows with file and line, a line each, up to a number of them; or says why the
            checkpoint's chat template cannot be trained with.
        RequestError: a limit on images is out of range.
    """
    checker = _Checker(processor, limits, decode_images)
    sizes = [_file_size(source.path) for source in mixture.sources]
    sources: list[PreparedSource] = []
    digest = hashlib.sha256(repr((limits, processor.image_processor.config)).encode())
    before = 0
    for source, size in zip(mixture.sources, sizes, strict=True):
        rows = []
        read = 0
        digest.update(repr((source.name, source.kind, source.weight)).encode())
        try:
            for number, line in read_lines(source.path):
                row = checker.row(source, number, line)
                if row is not None:
                    rows.append(row)
                digest.update(line)
                read += len(line)
                if progress is not None:
                    progress(ProgressEvent("examples", before + min(read, size), sum(sizes), "B"))
            if not read:
                raise DataError("has no rows")
        except DataError as error:
            checker.refuse_file(f"{source.path} {error}")
        before += size
        sources += _by_kind(source, rows)
    checker.raise_if_bad()
    for prepared in sources:
        for row in prepared.rows:
            digest.update(row.token_ids.tobytes())
    if progress is not None:
        progress(ProgressEvent("examples", before, before, "B"))
    return TrainingData(tuple(sources), processor, limits, digest.hexdigest())


class _Checker:
    """Prepares rows, and remembers the bad ones."""

    def __init__(self, processor: Processor, limits: DataLimits, decode_images: bool) -> None:
        processor.image_processor.config.override(limits.of_images)  # or say what is wrong
        self._processor = processor
        self._limits = limits
        self._encoder = ConversationEncoder(processor)
        self._size_of = decoded_size if decode_images else image_size
        self._sizes: dict[str, tuple[int, int]] = {}
        self._layouts: dict[tuple[int, int], ImageLayout] = {}
        self._bad_files: list[str] = []
        self._num_bad = 0
        self._lines: list[str] = []

    def refuse_file(self, line: str) -> None:
        """Remember a file that has no rows or cannot be read."""
        self._bad_files.append(" ".join(line.split()))

    def refuse(self, line: str) -> None:
        """Remember a bad row."""
        self._num_bad += 1
        if len(self._lines) < MAX_SHOWN:
            self._lines.append(" ".join(line.split()))

    def raise_if_bad(self) -> None:
        """Report all that was bad.

        Raises:
            DataError: something was.
        """
        lines = self._bad_files
        if self._num_bad:
            what = "a row" if self._num_bad == 1 else f"{self._num_bad} rows"
            heading = f"{what} cannot be trained on; mend or remove what is listed here:"
            lines = [*lines, heading, *self._lines]
        more = self._num_bad - len(self._lines)
        if more:
            lines = [*lines, f"and {more} more"]
        if lines:
            raise DataError("\n".join(lines))

    def row(self, source: Source, number: int, line: bytes) -> TrainingRow | None:
        """Return a row, or remember why there is none."""
        try:
            row = self._read(number, line, source.path.parent)
            if source.kind is not None and (source.kind == TEXT) == bool(row.images):
                has = "an image" if row.images else "no image"
                raise DataError(f"has {has}, but the source is of kind {source.kind}")
            return row
        except JvlmError as error:
            self.refuse(f"{source.path}:{number}: {error}")
            return None

    def _read(self, number: int, line: bytes, folder: Path) -> TrainingRow:
        conversation = read_conversation(line, folder)
        images = tuple(map(self._image, conversation.images))
        token_ids, labels = self._encoder.encode(conversation)
        row = TrainingRow(number, token_ids, labels, images)
        if row.length > self._limits.max_length:
            of_images = sum(image.layout.num_tokens for image in images)
            raise DataError(
                f"has {row.length} tokens, {of_images} of them for images; at most"
                f" {self._limits.max_length} are allowed"
            )
        return row

    def _image(self, source: str) -> ExampleImage:
        size = self._sizes.get(source)
        if size is None:
            size = self._sizes[source] = self._size_of(source)
        layout = self._layouts.get(size)
        if layout is None:
            layout = self._processor.image_layout(*size, self._limits.of_images)
            self._layouts[size] = layout
        return ExampleImage(source, size, layout)


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # reading it will say more


def _by_kind(source: Source, rows: list[TrainingRow]) -> list[PreparedSource]:
    """Make a source of its rows; of no declared kind, one of those with images, one without."""
    if source.kind is not None:
        return [_prepared(source, source.name, source.kind, rows)]
    with_images = [row for row in rows if row.images]
    without = [row for row in rows if not row.images]
    text_name = f"{source.name}-text" if with_images else source.name
    sources = []
    if with_images:
        sources.append(_prepared(source, source.name, "instructions", with_images))
    if without:
        sources.append(_prepared(source, text_name, TEXT, without))
    return sources


def _prepared(source: Source, name: str, kind: str, rows: list[TrainingRow]) -> PreparedSource:
    sizes = np.array([(row.num_tiles, row.length) for row in rows], np.int64).reshape(-1, 2)
    return PreparedSource(name, source.path, kind, source.weight, tuple(rows), sizes)
