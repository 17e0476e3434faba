"""The command line's parser: mistakes are one line, which names flags as they are typed."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

USAGE_ERROR = 2


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` that answers a mistake with one line and, if it can, the right name."""

    def __init__(self, **details: Any) -> None:
        super().__init__(**{"formatter_class": _HelpFormatter, **details})

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Return the values of all flags; what nobody asked for is an error."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._explain(unknown[0]))
        return found

    def error(self, message: str) -> NoReturn:
        """Print one line and exit; the usage, which argparse would print first, buries it."""
        message = re.sub(r"^argument (\S+?): ", r"\1: ", message)
        if message.endswith(("expected one argument", "expected at least one argument")):
            flag = message.partition(":")[0].split("/")[-1]
            message += f"; a value that begins with a dash is given as {flag}=VALUE"
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            choices = re.findall(r"[\w.-]+", choice[2])
            message += _suggest(choice[1], choices)
        print(f"error: {message}; {self.prog} --help shows more", file=sys.stderr)
        sys.exit(USAGE_ERROR)

    def name_flags(self, message: str) -> str:
        """Return a message of the package with flags in place of the names that Python has.

        A name of several words is one wherever it stands; one of a single word only where a
        message begins with what it says about it, as in `temperature is -1`.
        """
        if re.match(r"\S+\.jsonl?\b", message):
            return message  # about a key in a file, which is spelled as Python spells it
        flags = {
            action.dest: next(
                (flag for flag in action.option_strings if flag.startswith("--")),
                action.option_strings[0],
            )
            # The first of several actions counts; later ones are old spellings.
            for action in reversed(list(self._all_actions()))
            if action.option_strings and not isinstance(action, argparse._HelpAction)
        }
        compound = "|".join(map(re.escape, sorted((n for n in flags if "_" in n), reverse=True)))
        if compound:
            message = re.sub(
                rf"(?<![\w./'\"-])({compound})(?![\w./'\"-]|\.\w)",
                lambda found: flags[found[1]],
                message,
            )
        return re.sub(r"^([a-z]+)(?= is |: )", lambda found: flags.get(found[1], found[1]), message)

    def _explain(self, unknown: str) -> str:
        if not unknown.startswith("-") or unknown == "-":
            return f"unexpected argument {unknown!r}; text with spaces needs quotes"
        flag = unknown.partition("=")[0]
        known = [name for action in self._all_actions() for name in action.option_strings]
        return f"unknown flag {flag}{_suggest(flag, known)}"

    def _all_actions(self) -> Iterator[argparse.Action]:
        for action in self._actions:
            yield action
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    if isinstance(parser, CommandParser):
                        yield from parser._all_actions()


class _HelpFormatter(argparse.HelpFormatter):
    """Shows the default of a flag where it says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, [], True, False, argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: %(default)s)"


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
