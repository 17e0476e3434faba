"""Transcribe pages to Markdown, one after the other, with a mark in front of each.

Pages are images of any kind: scans, photos, screenshots. After an interruption, the same command
resumes where it stopped.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .batch import answer_requests, response_config
from .cli.arguments import add_cache_argument, add_generation_arguments, add_model_arguments
from .cli.batch_requests import STANDARD_STREAM, image_requests
from .cli.batch_responses import Format
from .cli.main import EXIT_INTERRUPTED
from .errors import RequestError
from .generation.batching import DEFAULT_BATCH_SIZE
from .process_group import ProcessGroup

PROMPT = (
    "Transcribe this page to Markdown. Keep the order of reading, headings, lists and tables."
    " Answer with the transcription alone."
)
MAX_TOKENS = 4096
"""Of a page; the usual limit of answers would cut most of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="the pages: images, globs in quotes such as 'scans/*.png', or folders",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, default=STANDARD_STREAM, metavar="OUT.md",
        help="the document; made of OUT.md.jsonl, which is resumed from. - for standard output",
    )  # fmt: skip
    parser.add_argument("-p", "--prompt", default=PROMPT, help="what is asked about each page")
    parser.add_argument(
        "--batch-size", type=int, default=DEFAULT_BATCH_SIZE, metavar="PAGES",
        help="pages transcribed at the same time; more need more memory",
    )  # fmt: skip
    parser.add_argument(
        "--retry-errors", action="store_true", help="read pages again that ended with an error"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_cache_argument(parser)
    add_model_arguments(parser)
    add_generation_arguments(parser)
    parser.set_defaults(max_tokens=MAX_TOKENS)


def run(arguments: argparse.Namespace) -> int:
    """Transcribe all pages, and return the exit code: 1 if a page could not be read."""
    group = ProcessGroup()
    config = response_config(arguments)
    requests = image_requests(arguments.files, arguments.prompt, Path(), config)
    if arguments.output != STANDARD_STREAM:
        formats: Mapping[str, Format] = {arguments.output.suffix.lower(): transcript}
        return answer_requests(arguments, requests, Path(), group, formats)
    if group.count > 1:
        raise RequestError(f"{group.count} processes need an output file, not -")
    with tempfile.TemporaryDirectory() as folder:
        # Pages end in any order, so that none can be shown before all are there.
        arguments.output = Path(folder, "pages.md")
        code = answer_requests(arguments, requests, Path(), group, {".md": transcript})
        if code != EXIT_INTERRUPTED:
            sys.stdout.buffer.write(arguments.output.read_bytes())
    return code


def transcript(responses: list[dict[str, Any]]) -> bytes:
    """Return a document of pages: a comment with the page's name, and its text."""
    pages = []
    for one in responses:
        name = str(one.get("id", one["row"]))
        if "error" in one:
            pages.append(_mark(f"page: {name}; not read: {one['error']}"))
            continue
        pages.append(f"{_mark(f'page: {name}')}\n\n{one['text'].strip()}\n")
        if one["finish_reason"] != "stop":
            pages.append(_mark(f"page ends early ({one['finish_reason']}): {name}"))
    return "\n".join(page if page.endswith("\n") else f"{page}\n" for page in pages).encode(
        "utf-8", "replace"
    )


def _mark(text: str) -> str:
    """Return a comment of Markdown; two hyphens would end it."""
    return f"<!-- {' '.join(text.split()).replace('--', '- -')} -->"


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("read"))
