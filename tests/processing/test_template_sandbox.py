"""Templates of strangers: what they may do, and that they end."""

import threading
import time
import tracemalloc

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from jvlm_mlx.processing import template_sandbox
from jvlm_mlx.processing.template_sandbox import TemplateSandbox

SANDBOX = TemplateSandbox()
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ' a\n"b" <ü> '}]},
    {"role": "assistant", "content": "yes, no"},
]


def render(source, **variables):
    return SANDBOX.render(SANDBOX.from_string(source), messages=MESSAGES, **variables)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index0 }} {{ loop.last }} {{ loop.length }}{% endfor %}",
        "{% for m in messages if m.role != 'system' %}{{ m.role }}{% else %}none{% endfor %}",
        "{% for m in [] %}x{% else %}none{% endfor %}{% for m in nothing %}x{% endfor %}",
        "{% for key, value in messages[0].items() %}{{ key ~ '=' ~ value ~ 3 }}{% endfor %}",
        "{% for m in messages recursive %}{{ m.role if m.role is defined else m }}"
        "{% if m.content is not string and m.content %}{{ loop(m.content) }}{% endif %}"
        "{% endfor %}",
        "{% set ns = namespace(found='') %}{% for m in messages %}{% set ns.found = ns.found"
        " + m.role %}{% endfor %}{{ ns.found }}",
        "{% macro show(m, sep=': ') %}{{ m.role }}{{ sep }}{% endmacro %}{{ show(messages[1]) }}"
        "{{ messages | map(attribute='role') | join(', ') }}",
        "{{ messages | tojson }}{{ messages[1].content | tojson(indent=2) }}",
        "{{ messages[2].content.split(', ') | reverse | list }}{{ 'abc'[::-1] }}{{ 7 * 6 ** 2 }}",
        "{{ ' x '.strip().upper().replace('X', 'yy') }}{{ '-' * 10 }}{{ 'a %s' % 'b' }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        "{{ (messages | rejectattr('role', 'in', ['user']) | first).content | trim | title }}",
        "{% set text %}{% for i in range(3) %}{{ i }}{% endfor %}{% endset %}{{ text | indent }}",
        "{%- if tools is none and documents is none %}{{ ('a', 'b') | join }}{% endif -%}",
        "{% macro wrap() %}<{{ caller() }}>{% endmacro %}{% filter upper %}"
        "{% call wrap() %}x{% endcall %}{% endfilter %}",
        "{% set d = dict(a=1) %}{{ d.get('a') }}{{ d.b | default('none', true) }}{{ 3.5 | int }}",
        "  {% if true %}\n    text  \n  {% endif %}\nlast\n",
    ],
)  # fmt: skip
def test_templates_give_what_transformers_gives(source):
    (expected,), _ = render_jinja_template([MESSAGES], chat_template=source)
    assert render(source, tools=None, documents=None) == expected


BOMBS = {
    "output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "output of a macro": "{% macro f() %}{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}"
                         "{% endmacro %}{% set a = f() %}",
    "output that is kept": "{% set a %}{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}"
                           "{% endset %}",
    "multiplication": "{{ 'a' * 10**9 }}",
    "multiplication from the right": "{{ 10**9 * 'a' }}",
    "a list": "{% set a = [0] * 10**9 %}",
    "addition": "{% set n = namespace(a='xx') %}{% for i in range(60) %}{% set n.a = n.a + n.a %}"
                "{% endfor %}",
    "joining": "{% set n = namespace(a='xx') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}"
               "{% endfor %}",
    "replacing": "{% set a = 'a' * 10**6 %}{{ a.replace('a', a) | length }}",
    "the filter replace": "{% set a = 'a' * 10**6 %}{{ a | replace('a', a) | length }}",
    "the method join": "{% set a = 'a' * 10**6 %}{{ a.join(a) | length }}",
    "the filter join": "{% set a = 'a' * 10**6 %}{{ a | join(a) | length }}",
    "indenting": "{% set a = '\\n' * 10**6 %}{{ a | indent(10**6) | length }}",
    "centering": "{{ 'a'.center(10**9) | length }}",
    "the filter center": "{{ 'a' | center(10**9) | length }}",
    "formatting": "{{ '%1000000000d' % 3 }}",
    "formatting with a star": "{{ '%*d' % (1000000000, 3) }}",
    "the method format": "{{ '{:1000000000}'.format(3) }}",
    "the filter format": "{{ '%1000000000d' | format(3) }}",
    "JSON": "{{ [[1]] * 1000 | tojson(indent=10**9) }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "powers": "{% set n = namespace(a=3) %}{% for i in range(60) %}{% set n.a = n.a * n.a %}"
              "{% endfor %}",
    "a range": "{% for i in range(10**9) %}{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% set a = 'a' * 10**6 %}{% for i in a %}{% for j in a %}{% endfor %}"
                       "{% endfor %}",
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
                 "{{ f(60) }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "filters in loops": "{% set a = range(99999) | list %}{% for i in a %}{{ a | sum }}"
                        "{% endfor %}",
    "made-up text": "{{ lipsum(n=10**6) }}",
    "a long template": "x" * (2**24 + 1),
}  # fmt: skip


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_bombs_end(source, monkeypatch):
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(template_sandbox, "MAX_CHARACTERS", 2**21)
    threads = threading.active_count()
    tracemalloc.start()
    started = time.thread_time()
    try:
        with pytest.raises((ArithmeticError, LookupError, RuntimeError, TypeError, TemplateError)):
            render(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.thread_time() - started < 5  # 0.3 seconds, and what one filter takes
    assert peak < 100e6
    assert threading.active_count() == threads
    assert render("{{ 1 }}") == "1"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{{ dict.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ strftime_now.__globals__ }}",
        "{% include 'x' %}",
        "{% import 'x' as x %}",
        "{{ (messages | attr('__class__')) }}",
        "{{ messages | map(attribute='__class__') | list | first }}",
    ],
)
def test_python_is_out_of_reach(source):
    try:
        found = render(source)
    except (TemplateError, TypeError, AttributeError):
        return
    assert found.strip() == ""


def test_threads_have_a_budget_each():
    with pytest.raises(TemplateError):
        render("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}")
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(render("{{ 'x' * 10**6 }}")))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["x" * 10**6] * 20
