"""Sizes and counts as text, sizes that users write, and the size of this machine's memory."""

import os
import re

_UNITS = {"B": 1}
for _exponent, _letter in enumerate("KMGT", start=1):
    _UNITS |= {f"{_letter}B": 1000**_exponent, f"{_letter}IB": 1024**_exponent}


def total_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def parse_bytes(text: str) -> int:
    """Return the bytes that a text like `8GB`, `7.5 GiB` or `0B` means.

    Raises:
        ValueError: it is no size, or a number without its unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)\s*", text.upper())
    if not match:
        raise ValueError(f"{text[:80]!r} is no size; give one like 8GB or 500MB")
    number, unit = match.groups()
    if not unit and float(number):
        raise ValueError(f"{number} has no unit; give a size like {number}GB or {number}MB")
    unit = unit if unit.endswith("B") else f"{unit}B"
    if unit not in _UNITS:
        raise ValueError(f"{text[:80]!r} is no size; give one like 8GB or 500MB")
    return int(float(number) * _UNITS[unit])


def bytes_text(size: float) -> str:
    """Return a size in decimal units, with three digits: `1.52 GB`."""
    return _scaled(size, ("B", "kB", "MB", "GB", "TB"))


def count_text(count: float) -> str:
    """Return a count with three digits: `412 M`."""
    return _scaled(count, ("", "k", "M", "G", "T"))


def percent_text(fraction: float) -> str:
    """Return a fraction as a percentage with two digits: `8.9 %`."""
    return f"{100 * fraction:.2g} %"


def plural(count: int, noun: str) -> str:
    """Return a count and its noun: `1 image`, `3 images`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    place = digits = 0
    # 999.5 would be rounded to 1000.
    while value >= 999.5 and place < len(units) - 1:
        value, place = value / 1000, place + 1
        digits = max(0, 3 - len(str(round(value))))
    return f"{value:.{digits}f} {units[place]}".rstrip()
