"""A small round of many clients; `python -m tests.fuzz.clients` makes large ones."""

import dataclasses

import pytest

from tests.fuzz import clients
from tests.fuzz.requests import Server


@pytest.fixture(scope="module")
def questions():
    return clients.make_questions(12)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("uvicorn")
    log = tmp_path_factory.mktemp("clients") / "log"
    started = Server(log, "demo", clients.flags(12, 4), key=None)
    yield started
    started.close()


def test_answers_are_those_of_single_runs_whoever_leaves(server, questions):
    outcome = clients.Outcome()
    clients.run_round(server, questions, 0, outcome)
    assert outcome.findings == []
    assert (outcome.right, outcome.left) == (8, 4)


def test_a_wrong_answer_is_a_finding(server, questions):
    outcome = clients.Outcome()
    wrong = [dataclasses.replace(one, expected="something else") for one in questions]
    clients.run_round(server, wrong, 0, outcome)
    assert len(outcome.findings) == 8


def test_memory_that_grows_is_a_finding():
    grown = [(number * 2**25, 0) for number in range(6)]
    for memory, count in ((grown, 1), ([(10**9, 5)] * 6, 0)):
        outcome = clients.Outcome(memory=memory)
        clients.check_memory(outcome)
        assert len(outcome.findings) == count
