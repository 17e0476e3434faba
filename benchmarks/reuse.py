"""Time until the first token of questions about an image that was seen before.

    python -m benchmarks.reuse --layers 0.15 --dtype float32
    python -m benchmarks.reuse --model DIR

The same photo of 13 tiles is asked about in several ways, each after a first question about it:

    fresh       nothing is cached: as the first question
    encoded     `EncodedImage`: the vision tower is left out, the whole prompt is read
    caches      `GenerationCaches`: only what follows the image is read
    next turn   `ChatSession`: only the new question is read

Every answer is compared with that of a fresh run of the same question, token by token.
"""

import argparse
import statistics
import sys
from typing import Any

from jvlm_mlx import (
    ChatSession,
    GenerationCaches,
    GenerationResponse,
    Model,
    Processor,
    encode_image,
    stream_generate,
)

from .harness.machine import describe_machine
from .harness.models import add_checkpoint_arguments, loaded_checkpoint
from .harness.photos import TILES, photo_bytes
from .harness.report import json_line, markdown_table
from .harness.timing import readable_seconds

FIRST, SECOND = "What is in this image?", "Which colors does it have, and where?"
Answer = list[GenerationResponse]


def answers(
    model: Model, processor: Processor, image: bytes, options: dict[str, Any]
) -> dict[str, tuple[Answer, Answer]]:
    """Return for each way the answer to a second question, and to the same one in a fresh run."""

    def ask(prompt: Any, images: Any, **others: Any) -> Answer:
        return list(stream_generate(model, processor, prompt, images, **others, **options))

    fresh = ask(SECOND, image)
    limits = {"max_crops": options["max_crops"]}
    encoded = encode_image(model, processor, image, **limits)
    caches = GenerationCaches(2 * 10**9)
    ask(FIRST, image, caches=caches)
    session = ChatSession(model, processor, caches=GenerationCaches(2 * 10**9), **options)
    list(session.ask(FIRST, image))
    history = session.history
    turn = list(session.ask(SECOND))
    content = [{"type": "text", "text": SECOND}]
    return {
        "fresh": (fresh, fresh),
        "encoded": (ask(SECOND, encoded), fresh),
        "caches": (ask(SECOND, image, caches=caches), fresh),
        "next turn": (turn, ask([*history, {"role": "user", "content": content}], None)),
    }


def tokens(answer: Answer) -> list[int | None]:
    """Return the tokens of an answer."""
    return [response.token for response in answer]


def main() -> int:
    """Run, print, and return 1 if an answer is not that of a fresh run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_checkpoint_arguments(parser)
    parser.add_argument("--tiles", type=int, choices=TILES, default=13)
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    options = {
        "max_tokens": arguments.max_tokens,
        "max_crops": TILES[arguments.tiles],
        "stop_token_ids": (),
    }
    image = photo_bytes(arguments.tiles)
    seconds: dict[str, list[float]] = {}
    same: dict[str, bool] = {}
    last: dict[str, GenerationResponse] = {}
    with loaded_checkpoint(arguments.model, arguments.layers, arguments.dtype) as loaded:
        for _ in range(arguments.repeats):
            for way, (answer, expected) in answers(*loaded, image, options).items():
                seconds.setdefault(way, []).append(answer[0].first_token_seconds)
                same[way] = same.get(way, True) and tokens(answer) == tokens(expected)
                last[way] = answer[-1]
    median = {way: statistics.median(values) for way, values in seconds.items()}
    print(
        markdown_table(
            ("second question", "first token", "sooner", "tokens read", "images", "same answer"),
            [
                (
                    way,
                    readable_seconds(median[way]),
                    f"{median['fresh'] / median[way]:.1f} x",
                    f"{one.prompt_tokens - one.cached_tokens} of {one.prompt_tokens}",
                    readable_seconds(one.image_seconds),
                    "yes" if same[way] else "NO",
                )
                for way, one in last.items()
            ],
        )
    )
    content = {
        "machine": describe_machine(),
        "arguments": vars(arguments),
        "tiles": last["fresh"].tiles,
        "first_token_seconds": seconds,
        "same_answer": same,
    }
    print(json_line("reuse", content))
    return 0 if all(same.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
