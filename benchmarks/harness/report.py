"""What a benchmark prints: tables, as the command line's, and a line of JSON."""

import json
from functools import partial
from typing import Any

from jvlm_mlx.cli.formatting import table

markdown_table = partial(table, markdown=True)


def json_line(benchmark: str, content: dict[str, Any]) -> str:
    """Return one line of JSON, for collecting runs in a file."""
    return json.dumps({"benchmark": benchmark, **content}, ensure_ascii=False)
