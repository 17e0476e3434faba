"""Imports mlx-lm without letting the import change the process.

Importing mlx-lm lowers the limit on open files of the whole process (it fails where the limit
is already below its own) and sets an environment variable of transformers. An app that embeds
this package must not notice either.
"""

import os
import resource

_ADVISORY = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def import_mlx_lm() -> None:
    """Import mlx-lm once, leaving file limits and environment as they were."""
    set_limit, advisory = resource.setrlimit, os.environ.get(_ADVISORY)
    # A lowered hard limit cannot be raised again, so it has to be kept from being lowered.
    resource.setrlimit = lambda *_: None
    try:
        import mlx_lm  # noqa: F401
    finally:
        resource.setrlimit = set_limit
        if advisory is None:
            os.environ.pop(_ADVISORY, None)
        else:
            os.environ[_ADVISORY] = advisory
