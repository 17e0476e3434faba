"""Findings, and what becomes of a check that ends with an exception."""

from pathlib import Path

import pytest

from jvlm_mlx.diagnostics.report import Finding, Skipped, counted, failure, guarded, time_text


def test_what_was_found_before_an_exception_stays():
    def check():
        yield Finding("first", "fine")
        raise ValueError("[matmul] Last dimension\nmust match")

    first, failed = guarded("check", check)
    assert first.verdict == "ok"
    assert failed.name == "check"
    assert failed.problem.endswith("[matmul] Last dimension must match")


def test_what_is_skipped_is_no_problem():
    def check():
        raise Skipped("not measured: 3 h")
        yield

    assert list(guarded("tower", check)) == [Finding("tower", "not measured: 3 h")]


def test_ctrl_c_is_no_finding():
    def check():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        list(guarded("tower", check))


def test_errors_tell_nobody_where_the_user_lives():
    found = failure("kernels", RuntimeError(f"no file {Path.home()}/mlx.metallib"))
    assert "no file ~/mlx.metallib" in found.problem


def test_an_error_without_words_has_its_name():
    assert failure("kernels", ZeroDivisionError()).problem.endswith("ZeroDivisionError")


def test_json_has_what_there_is():
    finding = Finding("tower", "slow", suspect="heat", data={"fraction": 0.5})
    assert finding.as_json() == {
        "name": "tower", "value": "slow", "verdict": "slow", "suspect": "heat", "fraction": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("findings", "text"),
    [
        ([], "all is well"),
        ([Finding("a", "")], "all is well"),
        ([Finding("a", "", "wrong")], "1 problem found"),
        ([Finding("a", "", "wrong")] * 2, "2 problems found"),
        ([Finding("a", "", suspect="heat")], "1 finding slower than possible"),
        (
            [Finding("a", "", "wrong"), Finding("b", "", suspect="heat")],
            "1 problem found, 1 finding slower than possible",
        ),
    ],
)
def test_the_last_line_counts(findings, text):
    assert counted(findings) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.4e-6, "2.4 us"), (0.00152, "1.52 ms"), (0.25, "250 ms"), (3.14159, "3.14 s")],
)
def test_times_have_three_digits(seconds, text):
    assert time_text(seconds) == text
