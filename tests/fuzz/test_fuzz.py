"""A short run of every kind with fixed seeds; `python -m tests.fuzz` makes a long one."""

import logging

import pytest

from tests.fuzz.targets import Targets

INPUTS = {"image": 150, "document": 60, "data_uri": 60, "array": 60, "text": 60, "options": 40,
          "messages": 40, "session": 40, "url": 40, "chat_request": 40}  # fmt: skip
FEW = 12
"""Of kinds that load a checkpoint each time."""


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    made = Targets(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


@pytest.mark.parametrize("kind", Targets.kinds())
def test_mutated_inputs_are_used_or_refused_in_one_line(targets, kind):
    logging.disable(logging.CRITICAL)
    try:
        outcomes = [targets.run(kind, seed) for seed in range(INPUTS.get(kind, FEW))]
    finally:
        logging.disable(logging.NOTSET)
    assert set(outcomes) <= {"used", "refused"}
    assert "refused" in outcomes


def test_a_finding_is_found(targets, monkeypatch):
    def broken(_self, _chance):
        raise ZeroDivisionError

    monkeypatch.setattr(Targets, "fuzz_array", broken)
    with pytest.raises(ZeroDivisionError):
        targets.run("array", 0)
