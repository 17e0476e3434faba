"""Times the way from a 4032 x 3024 JPEG to tiles, and compares it with mlx-vlm's.

    python -m benchmarks.preprocessing
    pip install mlx-vlm --no-deps
    python -m benchmarks.preprocessing --against mlx-vlm

The image is a mosaic of the photos that scikit-image ships, as large as a phone's camera takes
them. Runs of both sides alternate in one process, so that both see the same machine. Peak memory is
that of a fresh process each, above what it had after its imports and one small image.

The pixels of the two are not the same: mlx-vlm resizes with Pillow's bicubic kernel, the reference
implementation with bilinear interpolation without antialiasing.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import skimage.data
from PIL import Image

from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.image_config import ImageConfig
from jvlm_mlx.processing.image_io import open_image
from jvlm_mlx.processing.image_processor import ImageProcessor
from jvlm_mlx.processing.image_tokens import ImageTokenIds

CONFIG = Path(__file__).parent / "released" / "preprocessor_config.json"
IDS = ImageTokenIds(start=151936, end=151937, patch=151938, column=151939, image=151940)
PHOTOS = ("astronaut.png", "coffee.png", "hubble_deep_field.jpg", "retina.jpg", "rocket.jpg")
SIZE = (4032, 3024)

Preprocess = Callable[[Any], Any]


def in_new_process(action: Callable[..., Any], *arguments: Any) -> Any:
    """Return what an action returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(action, arguments)


def make_image(path: str, size: tuple[int, int]) -> None:
    """Write a mosaic of 3 x 3 photos."""
    image = Image.new("RGB", size)
    width, height = size[0] // 3, size[1] // 3
    for index in range(9):
        name = PHOTOS[index % len(PHOTOS)]
        with Image.open(Path(skimage.data.data_dir) / name) as photo:
            resized = photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        image.paste(resized, (index % 3 * width, index // 3 * height))
    image.save(path, quality=92)


def this_project() -> Preprocess:
    """Return this project's preprocessing."""
    values = json.loads(CONFIG.read_text(encoding="utf-8"))
    return ImageProcessor(ImageConfig.read(ConfigReader(values, CONFIG.name)), IDS)


def mlx_vlm() -> Preprocess:
    """Return mlx-vlm's preprocessing, from its one file: the package itself imports much more."""
    package = importlib.util.find_spec("mlx_vlm")
    if package is None or package.origin is None:
        sys.exit("mlx-vlm is not installed: pip install mlx-vlm --no-deps")
    path = Path(package.origin).parent / "models" / "jina_vlm" / "image_processor.py"
    spec = importlib.util.spec_from_file_location("mlx_vlm_image_processor", path)
    if spec is None or spec.loader is None:
        sys.exit(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    preprocess: Preprocess = module.ImageProcessor().preprocess
    return preprocess


SIDES = {"this project": this_project, "mlx-vlm": mlx_vlm}


def seconds(action: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def peak_bytes() -> int:
    """Return the most memory this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def measure_memory(side: str, path: str, small: str) -> int:
    """Return how far one image raises the peak; for a process of its own."""
    preprocess = SIDES[side]()
    preprocess(small)
    before = peak_bytes()
    preprocess(path)
    return peak_bytes() - before


def report(name: str, times: list[float]) -> None:
    """Print the median and the spread of some runs."""
    low, middle, high = statistics.quantiles(times, n=4)
    print(
        f"  {name:20} {middle * 1e3:7.1f} ms   (quartiles {low * 1e3:.1f} to {high * 1e3:.1f},"
        f" best {min(times) * 1e3:.1f})"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--against", choices=["mlx-vlm"], help="compare with another project")
    parser.add_argument("--image", help="another image file")
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()

    sides = ["this project"] + ([arguments.against] if arguments.against else [])
    with tempfile.TemporaryDirectory() as folder:
        path, small = str(Path(folder, "photo.jpg")), str(Path(folder, "small.jpg"))
        if arguments.image:
            path = arguments.image
        else:
            in_new_process(make_image, path, SIZE)
        in_new_process(make_image, small, (66, 66))
        # First of all: on Linux a new process inherits the peak of the one that started it.
        peaks = {side: in_new_process(measure_memory, side, path, small) for side in sides}

        packages = ["numpy", "pillow", *sides[1:]]
        versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
        image = open_image(path)
        decoded = image.width * image.height * 4 / 2**20
        print(f"{image.width} x {image.height} pixels, {Path(path).stat().st_size:,} bytes")
        print(f"{platform.machine()}, {', '.join(versions)}, {arguments.runs} runs, alternating")

        whole = {side: SIDES[side]() for side in sides}
        actions = {
            "decode alone": functools.partial(open_image, path),
            "preprocess alone": functools.partial(whole["this project"], image),
            **{side: functools.partial(preprocess, path) for side, preprocess in whole.items()},
        }
        times: dict[str, list[float]] = {name: [] for name in actions}
        for action in actions.values():  # warm up
            action()
        for _ in range(arguments.runs):
            for name, action in actions.items():
                times[name].append(seconds(action))
        for name, runs in times.items():
            report(name, runs)
        for side in sides[1:]:
            pairs = zip(times[side], times["this project"], strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            print(f"  {side} takes {ratio:.2f} times as long (median of pairs)")

        print(f"peak memory above imports, of which the decoded image {decoded:.0f} MiB")
        for side, peak in peaks.items():
            print(f"  {side:20} {peak / 2**20:7.0f} MiB")


if __name__ == "__main__":
    main()
