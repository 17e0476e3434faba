"""Many questions at once: `generate_batch`; `python -m jvlm_mlx.batch` for files of them."""

from .request import BatchAnswer, BatchRequest
from .run import generate_batch

__all__ = ["BatchAnswer", "BatchRequest", "generate_batch"]
