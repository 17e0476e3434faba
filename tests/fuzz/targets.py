"""What is fuzzed: for each kind of input, how one is made and what takes it.

A target returns what it did with the input in a word, or raises. A `JvlmError` is an answer, too;
its message is one line. Anything else that is raised is a finding.
"""

import random

import jvlm_mlx
from jvlm_mlx.errors import JvlmError
from tests.fuzz.checkpoint_targets import CheckpointTargets
from tests.fuzz.document_targets import DocumentTargets
from tests.fuzz.evaluation_targets import EvaluationTargets
from tests.fuzz.image_targets import ImageTargets
from tests.fuzz.request_targets import RequestTargets
from tests.fuzz.training_targets import TrainingTargets

MAX_MESSAGE = 3000


class Targets(
    ImageTargets,
    DocumentTargets,
    RequestTargets,
    CheckpointTargets,
    TrainingTargets,
    EvaluationTargets,
):
    """All kinds of inputs."""

    @staticmethod
    def kinds():
        """Return the names of all kinds."""
        return tuple(name.removeprefix("fuzz_") for name in dir(Targets) if name[:5] == "fuzz_")

    def run(self, kind, seed):
        """Try one input; return what became of it, in a word."""
        chance = random.Random(f"{kind} {seed}")
        try:
            return getattr(self, f"fuzz_{kind}")(chance) or "used"
        except JvlmError as error:
            message = str(error)
            # Reports about training data may have a line for each example.
            if not message or ("\n" in message and not isinstance(error, jvlm_mlx.DataError)):
                raise AssertionError(f"the message is not one line: {message[:200]!r}") from error
            if len(message) > MAX_MESSAGE:
                raise AssertionError(f"{len(message)} characters: {message[:200]!r}") from error
            return "refused"
