"""What the installed commands run: from here on, Ctrl-C has no traceback, and MLX its limits."""

from ..startup import begin

begin()

from .main import main as main  # noqa: E402 - what it imports may be interrupted
from .main import main_convert as main_convert  # noqa: E402
