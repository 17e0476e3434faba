"""Runs the chat templates of strangers: in jinja's sandbox, in bounded time and memory.

A template sees what chat templates see in the transformers library: its `tojson`,
`raise_exception`, `strftime_now`, the tags `break`, `continue` and `generation`. Jinja's sandbox
keeps it from Python, but not from loops in loops or from texts of gigabytes. So every step of a
loop, call and filter looks at the clock, everything that is written is counted, and what makes
long texts of short ones is checked before it is done.
"""

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ..config.json_file import quoted

MAX_SECONDS = 10.0
MAX_CHARACTERS = 2**24
"""Of a template, of all that it writes, and of any text on the way; also elements of a list."""
_MAX_BITS = 1024
_MAX_INDENT = 100

_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum",
    "title", "trim", "unique", "upper", "wordcount", "indent", "join", "replace",
)  # fmt: skip
_TEXT_METHODS = frozenset((
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha",
    "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper",
    "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
    "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "swapcase", "title", "upper",
))  # fmt: skip


class _Budget:
    def __init__(self) -> None:
        self._deadline = time.monotonic() + MAX_SECONDS
        self._written = 0

    def look(self) -> None:
        if time.monotonic() > self._deadline:
            raise TemplateError(f"it takes longer than {MAX_SECONDS:g} seconds")

    def write(self, count: int) -> None:
        self.look()
        self._written += count
        _check_size(self._written)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja's environment for chat templates. May be used from any thread."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self._running = threading.local()
        self.filters = {name: self._watched(name, self.filters[name]) for name in _FILTERS}
        self.filters["tojson"] = self._watched("tojson", _to_json)
        self.filters |= {"_counted": _counted, "_written": _written, "_joined": _joined}
        self.globals = {
            "range": self.globals["range"],
            "dict": lambda *pairs, **values: dict(*pairs, **values),
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }

    def render(self, template: jinja2.Template, **variables: Any) -> str:
        """Return what a template of this environment makes of its variables.

        Raises:
            TemplateError: it fails, writes too much or takes too long; so do other exceptions.
        """
        self._running.budget = _Budget()
        try:
            return "".join(template.generate(**variables))
        finally:
            del self._running.budget

    @property
    def budget(self) -> _Budget:
        """What is left to the template that this thread renders."""
        budget: _Budget = self._running.budget
        return budget

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        _check_size(len(source))
        parsed: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        return parsed

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow of texts only the methods that make no long ones without being checked."""
        if isinstance(obj, str) and attr not in _TEXT_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Leave `format` out: it fills up to any width."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Check how large a result becomes before it is computed."""
        self.budget.look()
        if operator == "%" and isinstance(left, str):
            if re.search(r"%[^a-zA-Z%]*[0-9*]", left):
                raise SecurityError("it formats text to a width")
        elif operator == "**":
            _check_bits(_bits(left) * (abs(right) if isinstance(right, int) else 1))
        elif operator == "*" and _size(left) == _size(right) == 0:
            _check_bits(_bits(left) + _bits(right))
        elif operator == "*":
            text, times = (left, right) if _size(left) else (right, left)
            _check_size(_size(text) * (times if isinstance(times, int) else 1))
        elif operator == "+":
            _check_size(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Check calls of a template, texts' methods above all."""
        __self.budget.look()
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            args = _checked_arguments(text, __obj.__name__, args)
        result = super().call(__context, __obj, *args, **kwargs)
        _check_size(_size(result))
        return result

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that looks at the clock, and at sizes before and after."""
        wanted = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

        # With the context as an argument it is never computed while a template is compiled.
        @jinja2.pass_context
        @functools.wraps(function, updated=())
        def filter_(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            self.budget.look()
            if name == "join":
                separator = str(args[0]) if args else str(kwargs.get("d", ""))
                (value,) = _checked_arguments(separator, name, (value,))
            elif name == "replace":
                _checked_arguments(str(value), name, args)
            elif name == "indent":
                width = args[0] if args else kwargs.get("width", 4)
                size = width if isinstance(width, int) else len(str(width))
                _check_size((str(value).count("\n") + 1) * size)
            elif name == "tojson" and isinstance(kwargs.get("indent"), int):
                kwargs["indent"] = min(kwargs["indent"], _MAX_INDENT)
            first = {"context": context, "environment": self, "eval_context": context.eval_ctx}
            given = (first[wanted],) if wanted else ()
            result = function(*given, value, *args, **kwargs)
            _check_size(_size(result))
            return result

        return filter_


class _Instrument(NodeTransformer):
    """Puts the checks into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        """Count the steps of a loop."""
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:  # noqa: N802
        """Count what is written."""
        self.generic_visit(node)
        node.nodes = [
            _filtered(
                nodes.Const(one.data, lineno=one.lineno)
                if isinstance(one, nodes.TemplateData)
                else one,
                "_written",
            )
            for one in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        """Check `a ~ b` before it is computed."""
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")


class _Generation(Extension):
    """The tag that marks answers for training elsewhere; here it shows what is inside it."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Any) -> Any:
        """Return what is between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's own, without names that begin with an underscore."""

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__()
        for name, value in dict(*values, **named).items():
            self[name] = value

    def __setitem__(self, name: Any, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"it sets {quoted(name)}")
        super().__setitem__(name, value)


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context
def _counted(context: Any, values: Iterable[Any]) -> Iterator[Any]:
    budget = context.environment.budget
    for value in values:
        budget.look()
        yield value


@jinja2.pass_context
def _written(context: Any, value: Any) -> Any:
    context.environment.budget.write(_written_size(value))
    return value


@jinja2.pass_context
def _joined(context: Any, values: list[Any]) -> str:
    context.environment.budget.look()
    _check_size(sum(map(_written_size, values)))
    return "".join(map(str, values))


def _checked_arguments(text: str, method: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check what a method of a text would make; iterators are used up, and come back as lists."""
    if method == "replace" and len(arguments) > 1:
        old, new = str(arguments[0]), str(arguments[1])
        _check_size(len(text) + text.count(old) * len(new))
    elif method == "join" and arguments:
        _check_size(_size(arguments[0]) * len(text))  # at once, where their number is known
        parts = list(arguments[0])
        _check_size(sum(_written_size(part) + len(text) for part in parts))
        return (parts,)
    return arguments


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As the transformers library writes it: without escapes of HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _size(value: Any) -> int:
    """Elements of a text or a collection; 0 of anything else."""
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0


def _written_size(value: Any) -> int:
    """Characters of a value as text, at least."""
    return len(value) if isinstance(value, str) else 1 + _size(value)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 64


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise SecurityError(f"it makes text or lists of more than {MAX_CHARACTERS} characters")


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise SecurityError("it computes numbers of more than 300 digits")
