"""Every name this package borrows from mlx-lm, so that an upgrade of mlx-lm touches one file.

Importing mlx-lm lowers the limit on open files of the whole process (and fails where the limit
is already below its own) and sets an environment variable of transformers. An app that embeds
this package must not notice either, so the import is guarded. Nothing else in this package
imports mlx-lm.

The import takes longer than all others together, so it waits until a name is used: `--help`, or
a request that is refused, needs none.
"""

import importlib
import os
import resource
import threading
from typing import Any

_MODULES = {
    "BatchKVCache": "models.cache",
    "DoRALinear": "tuner.dora",
    "KVCache": "models.cache",
    "LRUPromptCache": "models.cache",
    "LoRALinear": "tuner.lora",
    "RotatingKVCache": "models.cache",
    "apply_min_p": "sample_utils",
    "apply_top_k": "sample_utils",
    "apply_top_p": "sample_utils",
    "create_attention_mask": "models.base",
    "initialize_rope": "models.rope_utils",
    "make_logits_processors": "sample_utils",
    "scaled_dot_product_attention": "models.base",
}
_ADVISORY = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
_importing = threading.RLock()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_mlx_lm()
    found = getattr(importlib.import_module(f"mlx_lm.{_MODULES[name]}"), name)
    globals()[name] = found  # the next use finds it without this function
    return found


def import_mlx_lm() -> None:
    """Import mlx-lm once, leaving file limits and environment as they were.

    It brings transformers, which prints no advice about PyTorch then, as it would on its own.
    """
    with _importing:
        _import_guarded()


def _import_guarded() -> None:
    set_limit, advisory = resource.setrlimit, os.environ.get(_ADVISORY)
    importer = threading.get_ident()

    def keep_limit(*arguments: Any) -> None:
        # Of this thread alone: another may mean it.
        if threading.get_ident() != importer:
            set_limit(*arguments)

    # A lowered hard limit cannot be raised again, so it has to be kept from being lowered.
    resource.setrlimit = keep_limit
    try:
        import mlx_lm  # noqa: F401
    finally:
        resource.setrlimit = set_limit
        if advisory is None:
            os.environ.pop(_ADVISORY, None)
        else:
            os.environ[_ADVISORY] = advisory
