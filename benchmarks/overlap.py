"""Wall time of a batch of photos, with and without the CPU preparing the next one meanwhile.

    python -m benchmarks.overlap --model demo
    python -m benchmarks.overlap --model demo --device-seconds 0.5

Both ways run in turn, so that a busy machine is as slow for one as for the other. Without overlap,
each image is opened, resized and cut when its request's turn comes, and the device waits. On a CPU
the device is the processor that prepares images, too; `--device-seconds` lets each image take so
much longer on a device that leaves the processor alone, as a GPU does.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from unittest import mock

from PIL import Image

from jvlm_mlx import Model, Processor, batch_generate
from jvlm_mlx.generation import batching, device, image_encoding

from .harness.machine import describe_machine
from .harness.models import add_checkpoint_arguments, loaded_checkpoint
from .harness.report import json_line, markdown_table
from .harness.timing import readable_seconds

SIZE = 4032, 2688
"""Of a phone's photo: 10.8 megapixels."""


class _WhenAsked:
    """As `image_encoding.InBackground`, but nothing happens before the result is asked for."""

    done = True

    def __init__(self, function: Callable[[], Any]) -> None:
        self.result = function


@contextmanager
def without_overlap() -> Iterator[None]:
    """Prepare nothing ahead."""
    with (
        mock.patch.object(batching, "InBackground", _WhenAsked),
        mock.patch.object(image_encoding, "InBackground", _WhenAsked),
    ):
        yield


@contextmanager
def slower_device(seconds: float) -> Iterator[None]:
    """Let the encoding of each image take longer, without work for the processor."""
    encode = image_encoding.encode_tiles

    def slower(*arguments: Any) -> Any:
        encoded = encode(*arguments)
        device.run(lambda: time.sleep(seconds))
        return encoded

    with mock.patch.object(image_encoding, "encode_tiles", slower):
        yield


def photos(count: int) -> list[bytes]:
    """Return so many photos as JPEG files, no two of them equal."""
    from skimage import data

    photo = Image.fromarray(data.coffee()).resize(SIZE, Image.Resampling.BICUBIC)
    files = []
    for index in range(count):
        photo.putpixel((0, 0), (index * 20 % 256, 0, 0))
        file = BytesIO()
        photo.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def timed(
    model: Model, processor: Processor, images: list[bytes], **options: Any
) -> tuple[float, list[tuple[int, ...]]]:
    """Return seconds and the tokens of each answer."""
    requests = [{"prompt": "What is in this image?", "images": image} for image in images]
    found: dict[int, tuple[int, ...]] = {}
    start = time.perf_counter()
    for response in batch_generate(model, processor, requests, stop_token_ids=(), **options):
        if response.result is None:
            raise RuntimeError(response.error)
        found[response.index] = response.result.token_ids
    return time.perf_counter() - start, [found[index] for index in range(len(images))]


def main() -> int:
    """Run, print, and return 1 if the answers are not the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_checkpoint_arguments(parser)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device-seconds", type=float, default=0.0, help="more for each image")
    arguments = parser.parse_args()
    images = photos(arguments.images)
    options = {"batch_size": arguments.batch_size, "max_tokens": arguments.max_tokens}
    seconds: dict[str, list[float]] = {"with overlap": [], "without": []}
    same = True
    with (
        loaded_checkpoint(arguments.model, arguments.layers, arguments.dtype) as loaded,
        slower_device(arguments.device_seconds),
    ):
        _, expected = timed(*loaded, images, **options)
        for _ in range(arguments.repeats):
            one, answers = timed(*loaded, images, **options)
            with without_overlap():
                other, again = timed(*loaded, images, **options)
            seconds["with overlap"].append(one)
            seconds["without"].append(other)
            same = same and answers == again == expected
    ratio = statistics.median(other / one for one, other in zip(*seconds.values(), strict=True))
    print(
        markdown_table(
            (f"{arguments.images} images", "median", "fastest"),
            [
                (name, readable_seconds(statistics.median(each)), readable_seconds(min(each)))
                for name, each in seconds.items()
            ],
        )
    )
    print(
        f"without overlap it takes {ratio:.2f} times as long (median of {arguments.repeats} turns)"
    )
    print("the answers are the same" if same else "ANSWERS DIFFER")
    content = {
        "machine": describe_machine(),
        "arguments": vars(arguments),
        "seconds": seconds,
        "ratio": ratio,
        "same_answers": same,
    }
    print(json_line("overlap", content))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
