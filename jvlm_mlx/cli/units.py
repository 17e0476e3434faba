"""Sizes and counts as people read them."""


def bytes_text(size: float) -> str:
    """Return a size in decimal units, with three digits: `1.52 GB`."""
    return _scaled(size, ("B", "kB", "MB", "GB", "TB"))


def count_text(count: float) -> str:
    """Return a count with three digits: `412 M`."""
    return _scaled(count, ("", "k", "M", "G", "T"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    place = digits = 0
    # 999.5 would be rounded to 1000.
    while value >= 999.5 and place < len(units) - 1:
        value, place = value / 1000, place + 1
        digits = max(0, 3 - len(str(round(value))))
    return f"{value:.{digits}f} {units[place]}".rstrip()
