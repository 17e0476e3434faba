"""Flags of decoding and memory: the same for every subcommand, and they arrive."""

import importlib
import io
import sys

import mlx.core as mx
import pytest

from jvlm_mlx.cli.main import EXIT_ERROR, EXIT_OK, main
from jvlm_mlx.errors import RequestError
from jvlm_mlx.generation import answer, batching, memory
from jvlm_mlx.serving import service
from jvlm_mlx.serving.scheduler import Scheduler

FLAGS = ("--no-repetition-guard", "--prompt-lookup", "--wired-limit", "none")
UNSET = {"repetition_guard": True, "prompt_lookup": False, "wired_limit": None}
GIVEN = {"repetition_guard": False, "prompt_lookup": True, "wired_limit": "none"}


@pytest.fixture
def asked(monkeypatch):
    """Options of every answer as the decode loop gets them, and all wired limits held."""
    seen = {"options": [], "wired": []}
    make_row, hold = answer.make_row, memory.WiredLimit.hold

    def watch_row(model, prepared, options, max_tokens):
        seen["options"].append({name: getattr(options, name) for name in GIVEN})
        return make_row(model, prepared, options, max_tokens)

    def watch_hold(limit, size):
        seen["wired"].append(size)
        hold(limit, size)

    for module in (answer, batching):
        monkeypatch.setattr(module, "make_row", watch_row)
    monkeypatch.setattr(memory.WiredLimit, "hold", watch_hold)
    return seen


@pytest.mark.parametrize(
    ("subcommand", "arguments"),
    [
        ("generate", ["-i", "{image}", "-p", "Hi"]),
        ("chat", ["--image", "{image}"]),
        ("batch", ["-i", "{image}", "-p", "Hi", "-o", "{output}.jsonl"]),
        ("read", ["{image}", "-o", "{output}.md"]),
    ],
)
@pytest.mark.parametrize(("flags", "expected"), [((), UNSET), (FLAGS, GIVEN)])
def test_flags_reach_the_decode_loop_and_the_wired_limit(
    asked, monkeypatch, golden_folder, tmp_path, subcommand, arguments, flags, expected
):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
    paths = {"image": golden_folder / "images" / "dot.png", "output": tmp_path / "out"}
    given = [argument.format(**paths) for argument in arguments]
    model = ["--model", str(golden_folder / "tiny"), "--max-tokens", "3", "--quiet"]
    assert main([subcommand, *given, *model, *flags]) == EXIT_OK
    assert asked["options"] == [expected]
    assert set(asked["wired"]) == {expected["wired_limit"]}


@pytest.mark.parametrize(("flags", "expected"), [((), {}), (FLAGS, GIVEN)])
def test_flags_of_evaluate(monkeypatch, tmp_path, flags, expected):
    asked = []
    monkeypatch.setattr(
        importlib.import_module("jvlm_mlx.evaluate"),
        "run_benchmark",
        lambda *_, **options: asked.append(options) or {},
    )
    arguments = ["--benchmark", "DocVQA_VAL", "--data", "x.tsv", "-o", str(tmp_path)]
    (tmp_path / "report.md").write_text("")
    assert main(["evaluate", *arguments, *flags]) == EXIT_OK
    assert {name: value for name, value in asked[0].items() if name in GIVEN} == expected


@pytest.fixture
def served(monkeypatch):
    """What the command line would serve with; it ends there."""
    options = []

    def stop(given, load):
        options.append(given)
        raise RequestError("enough")

    monkeypatch.setattr(service, "Service", stop)
    return options


def test_flags_of_serve(served):
    assert main(["serve", "--port", "0", *FLAGS]) == EXIT_ERROR
    assert {name: served[0].defaults[name] for name in GIVEN} == GIVEN
    assert served[0].wired_limit == "none"


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("off", False)])
def test_switches_of_serve_may_be_environment_variables(monkeypatch, served, value, expected):
    monkeypatch.setenv("JVLM_PROMPT_LOOKUP", value)
    monkeypatch.setenv("JVLM_WIRED_LIMIT", "2GB")
    assert main(["serve", "--port", "0"]) == EXIT_ERROR
    assert served[0].defaults == {"prompt_lookup": expected, "wired_limit": 2 * 10**9}


def test_a_server_holds_the_wired_limit_until_it_ends(asked, tiny):
    scheduler = Scheduler(
        *tiny, caches=None, max_concurrent=1, max_queue=1, max_memory=None, wired="none"
    )
    assert asked["wired"] == ["none"]
    scheduler.close(10)
    assert memory.wired_limit._held == []


@pytest.mark.parametrize("subcommand", ["generate", "serve"])
def test_the_limit_of_freed_memory(monkeypatch, served, subcommand):
    limits = []
    monkeypatch.setattr(mx, "set_cache_limit", limits.append)
    arguments = ["-p", "Hi", "-m", "/no/such/model"] if subcommand == "generate" else []
    assert main([subcommand, *arguments]) == EXIT_ERROR
    assert limits == []
    assert main([subcommand, *arguments, "--mlx-cache-limit", "500MB"]) == EXIT_ERROR
    assert limits == [500 * 10**6]


@pytest.mark.parametrize("value", ["all", "0", "-1GB"])
def test_a_wired_limit_that_is_no_size(capsys, value):
    with pytest.raises(SystemExit):
        main(["generate", "-p", "Hi", f"--wired-limit={value}"])
    assert capsys.readouterr().err.startswith("error: --wired-limit: ")
