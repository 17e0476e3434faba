"""One trial: a run with a fault, then a good one. What is wrong with either is a finding."""

import re
import shutil

from tests.fuzz.faults.fault import NO_FAULT
from tests.fuzz.faults.jobs import comparable
from tests.fuzz.faults.runs import MAX_SECONDS, contents, run

LEFTOVER = re.compile(r"\.writing|\.lock$|rank\d|/result/|-replaced")
MAX_LINE = 600


class Trials:
    """Trials of one job, each in a fresh folder at the same place.

    Args:
        job: the job.
        scratch: an empty folder.
        injector: lets faults happen.
    """

    def __init__(self, job, scratch, injector):
        self._job, self._scratch, self._injector = job, scratch, injector
        self._folder = scratch / "folder"
        self._prepare()
        self._before = self._contents()
        first = self._run(NO_FAULT, note=True)
        if first.code:
            raise AssertionError(f"{job.name}: an undisturbed run fails: {first.errors}")
        self.calls, self.seconds, self._said = first.calls, first.seconds, set(first.errors)
        self._expected = self._contents()

    def findings(self, fault):
        """Return what a fault brings to light, a line each."""
        self._prepare()
        disturbed = self._run(fault)
        found = [] if fault.kills else self._problems(fault, disturbed)
        left = self._contents()
        if self._job.is_whole and _visible(left) not in (self._before, self._expected):
            found.append(f"half a result: {_difference(_visible(left), self._expected)}")
        # An old checkpoint that cannot be removed stays, with a word of warning.
        stays = fault.call.startswith("remove") and not disturbed.code and disturbed.errors
        if left == self._expected or stays:
            return found
        good = self._run(NO_FAULT, again=True)
        if good.code == -9 and good.seconds > MAX_SECONDS:
            found.append("the next run hangs")
        # Some refuse to do again what is done, but they clean up.
        elif good.code and _visible(left) != self._expected:
            found.append(f"the next run fails with {good.code}: {good.errors[-1:]}")
        after = self._contents()
        if after != self._expected:
            found.append(f"after the next run: {_difference(after, self._expected)}")
        return found

    def _problems(self, fault, outcome):
        """Return what is wrong with a run that a system call let down."""
        new = [line for line in outcome.errors if line not in self._said and line.strip()]
        left = self._contents()
        if outcome.code < 0 and outcome.seconds > MAX_SECONDS:
            return ["a hang"]
        if outcome.code not in (0, 1):
            return [f"exit code {outcome.code}: {' | '.join(new[-4:])}"]
        found = []
        if _visible(left) != self._expected and not new:
            found.append(f"code {outcome.code}, but silent: {_difference(left, self._expected)}")
        if len(new) > 1 or any(len(line) > MAX_LINE for line in new):
            found.append(f"{len(new)} lines: {' | '.join(new[:6])[:MAX_LINE]}")
        names = [name for name in left if LEFTOVER.search(name)]
        if names and not fault.call.startswith("remove"):
            found.append(f"left behind at once: {names[:3]}")
        return found

    def _prepare(self):
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._job.prepare(self._folder / "out")

    def _run(self, fault, *, again=False, note=False):
        out = self._folder / "out"
        return run(
            self._job.command(out, again=again), self._job.typed.format(out=out), self._folder,
            self._scratch, self._injector, fault, note=note,
        )  # fmt: skip

    def _contents(self):
        return comparable(contents(self._folder))


def _visible(files):
    """Return files without locks and temporary ones."""
    return {name: data for name, data in files.items() if not LEFTOVER.search(name)}


def _difference(found, expected):
    missing = sorted(expected.keys() - found.keys())
    more = sorted(found.keys() - expected.keys())
    other = sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name])
    parts = [f"missing {missing[:3]}", f"more {more[:3]}", f"other {other[:3]}"]
    return ", ".join(
        part for part, names in zip(parts, (missing, more, other), strict=True) if names
    )
