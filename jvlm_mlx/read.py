"""Transcribe pages to Markdown, one after the other, with a mark in front of each.

Pages are images of any kind (scans, photos, screenshots), pages of PDFs and frames of TIFFs. After
an interruption, the same command resumes where it stopped. With a JSON Schema, each page becomes
one JSON object instead.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from .batch import answer_requests, response_config
from .cli.arguments import add_batch_arguments, add_generation_arguments
from .cli.batch_images import image_patterns, image_requests
from .cli.batch_requests import STANDARD_STREAM
from .cli.main import EXIT_INTERRUPTED
from .cli.progress_bars import ProgressBars, wants_progress
from .errors import RequestError
from .process_group import ProcessGroup

PROMPT = (
    "Transcribe this page to Markdown. Keep the order of reading, headings, lists and tables."
    " Answer with the transcription alone."
)
SCHEMA_PROMPT = "Extract from this page, as JSON, what the schema asks for: {schema}"
MAX_TOKENS = 4096
"""Of a page; the usual limit of answers would cut most of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="images, PDFs (report.pdf#2-4 for some pages), globs in quotes such as"
        " 'scans/*.png', folders, or - for standard input",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, default=STANDARD_STREAM, metavar="OUT.md",
        help="the document; made of OUT.md.jsonl, which is resumed from. - for standard output",
    )  # fmt: skip
    parser.add_argument(
        "-p", "--prompt", help="what is asked about each page; else to transcribe it"
    )  # fmt: skip
    add_batch_arguments(parser, "pages")
    add_generation_arguments(parser)
    parser.set_defaults(max_tokens=MAX_TOKENS)


def run(arguments: argparse.Namespace) -> int:
    """Transcribe all pages, and return the exit code: 1 if a page could not be read."""
    group = ProcessGroup()
    config, prompt, form = response_config(arguments), PROMPT, transcript
    if (schema := getattr(arguments, "schema", None)) is not None:
        prompt, form = SCHEMA_PROMPT.format(schema=json.dumps(schema, sort_keys=True)), objects
    prompt = prompt if arguments.prompt is None else arguments.prompt

    def answer() -> int:
        formats = {arguments.output.suffix.lower(): form}
        with image_patterns(arguments.files, Path()) as (patterns, folder, content):
            with ProgressBars(wants_progress(arguments.quiet)) as bars:
                requests = image_requests(
                    patterns, prompt, folder, config + content, per_page=True, progress=bars.show
                )
            return answer_requests(arguments, requests, folder, group, formats)

    if arguments.output != STANDARD_STREAM:
        return answer()
    if group.count > 1:
        raise RequestError(f"{group.count} processes need an output file, not -")
    with tempfile.TemporaryDirectory() as folder:
        # Pages end in any order, so that none can be shown before all are there.
        arguments.output = Path(folder, "pages")
        code = answer()
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


def objects(responses: list[dict[str, Any]]) -> bytes:
    """Return one line of JSON for each page: its name and its content, or why there is none."""
    lines = []
    for one in responses:
        line = {"page": one.get("id", one["row"])}
        try:
            line |= (
                {"error": one["error"]} if "error" in one else {"content": json.loads(one["text"])}
            )
        except ValueError:
            line["error"] = f"the object ends early ({one['finish_reason']}): {one['text']}"
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines).encode("utf-8", "replace")


def _mark(text: str) -> str:
    """Return a comment of Markdown; two hyphens would end it."""
    return f"<!-- {' '.join(text.split()).replace('--', '- -')} -->"


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("read"))
