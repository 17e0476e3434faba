"""A short campaign of faults; `python -m tests.fuzz.faults` makes a long one."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.faults.fault import FAIL, FULL, KILL_AFTER, KILL_BEFORE, SHORT, failures, kills
from tests.fuzz.faults.injectors import compile_interposer

ROOT = Path(__file__).parents[2]


def campaign(*flags):
    command = [sys.executable, "-m", "tests.fuzz.faults", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("way", ["every call", "Python's own calls"])
def test_killed_or_let_down_nothing_is_lost(way, tmp_path):
    if way == "every call":
        if compile_interposer(tmp_path) is None:
            pytest.skip("needs Linux and a compiler")
        done = campaign("--jobs", "batch to a table", "--kills", "4", "--failures", "8")
    else:
        done = campaign("--pure", "--jobs", "chat", "convert", "--kills", "4", "--failures", "8")
    assert done.returncode == 0, done.stdout
    assert "4 kills, 8 failures, 0 findings" in done.stdout


def test_every_call_has_its_faults():
    calls = ("create /x", "write write", "sync fsync", "rename /x")
    assert [(one.at, one.mode) for one in kills(calls)] == [
        (at, mode) for at in range(4) for mode in (KILL_BEFORE, KILL_AFTER)
    ]
    found = failures(calls)
    assert {one.mode for one in found if one.at == 1} == {FAIL, FULL, SHORT}
    assert {one.mode for one in found if one.at == 3} == {FAIL}
    assert all(dataclasses.replace(one, call="").error for one in found if one.mode == FAIL)
