"""Every name this package borrows from mlx-lm, so that an upgrade of mlx-lm touches one file.

Importing mlx-lm lowers the limit on open files of the whole process (and fails where the limit
is already below its own) and sets an environment variable of transformers. An app that embeds
this package must not notice either, so the import is guarded. Nothing else in this package
imports mlx-lm.
"""

import os
import resource

_ADVISORY = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def _import_mlx_lm() -> None:
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


_import_mlx_lm()

from mlx_lm.models.base import (  # noqa: E402 - after the guarded import
    create_attention_mask,
    scaled_dot_product_attention,
)
from mlx_lm.models.cache import (  # noqa: E402
    BatchKVCache,
    KVCache,
    LRUPromptCache,
    QuantizedKVCache,
    RotatingKVCache,
)
from mlx_lm.models.rope_utils import initialize_rope  # noqa: E402
from mlx_lm.sample_utils import (  # noqa: E402
    apply_min_p,
    apply_top_k,
    apply_top_p,
    make_logits_processors,
)
from mlx_lm.tuner.dora import DoRALinear  # noqa: E402
from mlx_lm.tuner.lora import LoRALinear  # noqa: E402

__all__ = [
    "BatchKVCache",
    "DoRALinear",
    "KVCache",
    "LRUPromptCache",
    "LoRALinear",
    "QuantizedKVCache",
    "RotatingKVCache",
    "apply_min_p",
    "apply_top_k",
    "apply_top_p",
    "create_attention_mask",
    "initialize_rope",
    "make_logits_processors",
    "scaled_dot_product_attention",
]
