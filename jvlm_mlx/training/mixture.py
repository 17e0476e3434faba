"""Which files to train on, and how much of each: a mixture file, or a single file of rows.

{"sources": [
    {"name": "scenes", "path": "scenes.jsonl", "kind": "captions", "weight": 3.0},
    {"name": "texts", "path": "texts.jsonl", "kind": "text", "weight": 1.0}
]}
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.json_file import parse_json
from ..errors import DataError
from ..files import local_path

KINDS = ("captions", "instructions", "text")
TEXT = "text"
_KEYS = ("name", "path", "kind", "weight")


@dataclass(frozen=True)
class Source:
    """One file of rows."""

    name: str
    path: Path
    kind: str | None
    """`captions` or `instructions`: every row has an image; `text`: none has. None: the file is
    the only one, and its rows are told apart by what they have."""
    weight: float
    """Share among the sources with images, or among those without, before it is normed."""


@dataclass(frozen=True)
class Mixture:
    """The files to draw rows from."""

    sources: tuple[Source, ...]


def read_mixture(path: str | Path) -> Mixture:
    """Read a mixture file, or take a single `.jsonl` file for a mixture of one source.

    Paths in a mixture file start from its folder.

    Raises:
        DataError: the file cannot be read, or says something else than a mixture.
    """
    path = local_path(path, DataError)
    if path.suffix == ".jsonl":
        return Mixture((Source(path.stem, path, None, 1.0),))
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(
            f"{path} is no JSON: {error}; expected a mixture, or rows in a file named .jsonl"
        ) from None
    entries = content.get("sources") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f'{path} is no mixture; expected {{"sources": [{{...}}, ...]}}')
    sources = tuple(
        _read_source(entry, path.parent, f"{path}: source {place}")
        for place, entry in enumerate(entries)
    )
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: two sources are named {name!r}; give each its own name")
    return Mixture(sources)


def _read_source(entry: Any, folder: Path, where: str) -> Source:
    if not isinstance(entry, dict):
        raise DataError(f"{where} must be an object with {', '.join(_KEYS)}")
    for key in entry:
        if key not in _KEYS:
            raise DataError(f"{where} has {key!r}, which is no key; expected {', '.join(_KEYS)}")
    for key in ("name", "path"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise DataError(f"{where}: {key} must be a text")
    kind, weight = entry.get("kind"), entry.get("weight")
    if kind not in KINDS:
        raise DataError(f"{where}: kind is {kind!r}; expected {', '.join(KINDS)}")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise DataError(f"{where}: weight is {weight!r}; expected a number above 0")
    if not 0 < weight < math.inf:
        raise DataError(f"{where}: weight is {weight}; expected a number above 0")
    path = folder / local_path(entry["path"], DataError)
    return Source(entry["name"], path, kind, float(weight))
