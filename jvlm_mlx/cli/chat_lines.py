"""Reads one question, of one line or several, from whoever types it."""

from collections.abc import Callable

FENCE = '"""'


def read_question(read_line: Callable[[bool], str]) -> str:
    r'''Read lines until a question is complete.

    A line that ends with a backslash goes on in the next one. Everything between two lines
    that begin and end with three quotes is one question, as it is:

        > """
        . Two lines,
        . and \ is nothing special.
        . """

    Args:
        read_line: returns the next line, without its end; told whether a question goes on.

    Raises:
        EOFError: there are no more lines.
    '''
    line = read_line(False)
    if line.strip().startswith(FENCE):
        return _until_fence(line.strip().removeprefix(FENCE), read_line)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read_line(True))
    return _clean("\n".join(lines))


def _until_fence(first: str, read_line: Callable[[bool], str]) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(FENCE):
        lines.append(read_line(True))
    lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
    return _clean("\n".join(lines))


def _clean(text: str) -> str:
    """Bytes that are no UTF-8 arrive as lone surrogates, which nothing can be done with."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()
