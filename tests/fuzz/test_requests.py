"""A short run of mutated requests; `python -m tests.fuzz.requests` makes a long one."""

import json

import jsonschema
import pytest

from tests.fuzz.request_mutations import CHAT, KINDS, Mutations, Sent
from tests.fuzz.requests import FLAGS, Finding, Server, campaign, check


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("uvicorn")
    started = Server(tmp_path_factory.mktemp("fuzz") / "log", flags=FLAGS)
    yield started
    started.close()


def test_mutated_requests_are_answered_or_refused(server):
    outcome = campaign(server, range(150))
    assert outcome.findings == []
    assert {kind for kind, _ in outcome.counts} == set(KINDS)
    assert {"200", "400", "401", "403", "404", "413"} <= {found for _, found in outcome.counts}


def test_a_request_can_be_made_again():
    for seed in range(30):
        assert Mutations().run(seed) == Mutations().run(seed)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        (500, {}, b"{}"),
        (200, {"Content-Type": "application/json"}, b"{}"),
        (200, {"Content-Type": "application/json"}, b"<html>"),
        (200, {"Content-Type": "text/event-stream"}, b"data: {}\n\ndata: [DONE]\n\n"),
        (200, {"Content-Type": "text/event-stream"}, b"data: [DO"),
        (400, {}, b"Bad request"),
        (400, {}, json.dumps({"error": "text"}).encode()),
        (400, {}, json.dumps({"error": {"message": "a\nb", "type": "x", "param": None,
                                        "code": None}}).encode()),
    ],
)  # fmt: skip
def test_a_finding_is_found(answer):
    with pytest.raises((Finding, jsonschema.ValidationError)):
        check(Sent(b"POST", path=CHAT), answer)
