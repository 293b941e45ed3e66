"""A hostile template reaches nothing, costs little, and never takes the process with it."""

from __future__ import annotations

import gc
import random
import sys
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.errors import ModelFormatError, RequestError
from qwenstack.tokenizer.chat_template import ChatTemplate

VARIABLES = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "add_generation_prompt": True,
}

ESCAPES = [
    # Through classes of plain values
    *("''.__class__", "''['__class__']", "().__class__.__base__.__subclasses__()", "[].__class__.__mro__[1]"),
    *("{}.__class__.__bases__[0]", "(1).__class__", "1.5.__class__", "true.__class__", "none.__class__"),
    *("messages.__class__", "messages[0].__class__", "messages[0]['__class__']", "messages[0].content.__class__"),
    *("''.__doc__", "''.__init__", "''.__reduce_ex__(2)", "[].__reduce__()", "''.__getattribute__('__class__')"),
    *("''['__cla' ~ 'ss__']", "''['\\x5f\\x5fclass\\x5f\\x5f']", "messages[0].get.__self__", "''.join.__self__"),
    *("messages[0].items.__globals__", "''.strip.__func__", "''.upper.function", "''.upper.receiver"),
    # Through Jinja's own objects
    *("self.__init__.__globals__", "self._TemplateReference__context", "self.__dict__", "self.environment"),
    *("cycler.__init__.__globals__.os", "joiner.__init__.__globals__", "lipsum.__globals__['os'].popen('id').read()"),
    *("namespace.__init__.__globals__", "namespace().__class__", "namespace()._Namespace__attrs", "range.__class__"),
    *("namespace.function.__globals__", "raise_exception.function", "raise_exception.__globals__", "dict.mro()"),
    *("strftime_now.__globals__", "strftime_now.function.__globals__", "config", "request", "environment", "context"),
    *("missing.__class__", "missing._undefined_obj", "missing._fail_with_undefined_error.__globals__", "caller"),
    *("dict.__subclasses__()", "dict.fromkeys.__self__", "namespace(__class__=1)", "namespace(**{'__class__': 1})"),
    # Through filters and tests
    *("'' | attr('__class__')", "messages | map(attribute='__class__') | list", "'{0.__class__}' | format('')"),
    *("messages | map('attr', '__class__') | list", "messages | sort(attribute='__class__')", "'a' | pprint"),
    *("messages | groupby('__class__') | list", "messages | sum(attribute='__class__')", "'x' | xmlattr"),
    *("messages | selectattr('__class__') | map('upper') | list", "messages | unique(attribute='__class__')"),
    *("'%s' % ''.__class__", "'%c' % 65", "'{0.__class__}'.format('')", "'{a.__class__}'.format_map({'a': ''})"),
    *("''.format.__self__", "''.translate({})", "''.encode()", "''.maketrans('a', 'b')", "[1].append(2)", "[1].pop()"),
    *("messages.clear()", "messages[0].update(a=1)", "messages[0].pop('role')", "messages[0].setdefault('x', 1)"),
    *("''.upper.call('x')", "(1).to_bytes(9, 'big')", "(1).from_bytes(b'')", "1.5.hex()", "messages.sort()"),
]

FORBIDDEN_STATEMENTS = [
    *("{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{% from 'os' import system %}", "{% extends 'x' %}"),
    *("{% block a %}{% endblock %}", "{% call raise_exception() %}{% endcall %}", "{% filter upper %}a{% endfilter %}"),
    *("{% autoescape true %}{% endautoescape %}", "{% do messages.pop() %}", "{% set messages.x = 1 %}"),
    *("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "{% for x in messages recursive %}{% endfor %}"),
    *(
        "{{ dict(*messages) }}",
        "{{ dict(**messages[0]) }}",
        "{% debug %}",
        "{% trans %}a{% endtrans %}",
        "{{ 9 ** 9999 }}",
    ),
]

LOOP = "{% for a in range(99999) %}"
NEST = (
    "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
)
PAIRS = "{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
GROW = "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = "
LONG = "{% set s = 'a' * 200000 %}"
BOMBS = [
    # Time
    LOOP * 4 + "{% endfor %}" * 4,
    "{% for a in range(10**60) %}{% endfor %}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set ns = namespace(x=[]) %}" + LOOP + "{% set ns.x = ns.x + [a] %}{% endfor %}",
    LONG + LOOP + "{% set t = s[::-1] %}{% endfor %}",
    LONG + LOOP + "{% if s == s ~ 'a' %}{% endif %}{% endfor %}",
    LONG + LOOP + "{% set t = s.find('b') %}{% endfor %}",
    LONG + LOOP + "{% set t = s | title %}{% endfor %}",
    LONG + LOOP + "{% if 'b' in s %}{% endif %}{% endfor %}",
    "{% set x = range(10**8) | list %}",
    "{% set x = range(10**8) | select('odd') | list %}",
    "{{ messages | selectattr('role', 'in', range(10**9)) | list }}",
    "{{ -1.5 in range(10**9) }}",
    "{{ -1.5 is in range(10**9) }}",
    # Text
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    GROW + "ns.x ~ ns.x %}{% endfor %}",
    GROW + "ns.x + ns.x %}{% endfor %}",
    GROW + "ns.x.replace('a', ns.x) %}{% endfor %}",
    GROW + "ns.x | replace('a', ns.x) %}{% endfor %}",
    GROW + "ns.x.join([ns.x, ns.x]) %}{% endfor %}",
    GROW + "[ns.x, ns.x] | join(ns.x) %}{% endfor %}",
    "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}" + GROW + "m(ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    LOOP + "x" * 60_000 + "{% endfor %}",
    "{% set x %}" + LOOP + "x" * 60_000 + "{% endfor %}{% endset %}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%999999999d' is even }}",
    "{{ ['%999999999d'] | select('odd') | list }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a' | indent(10**9) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ messages | tojson(separators=['a' * 200000, ':']) }}",
    "{{ strftime_now('%999999999d' * 99) }}",
    # Numbers
    "{{ 9 ** 9 ** 9 }}",
    "{{ 9 ** -99 }}",
    "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ ('f' * 200000) | int(0, 16) }}",
    "{{ 1 | round(-10**9) }}",
    "{{ " + "9" * 5_000 + " }}",
    # Values that contain themselves many times over
    NEST + "{{ ns.x }}",
    NEST + "{{ ns.x | tojson }}",
    NEST + "{{ ns.x | string }}",
    NEST + "{{ ns.x == ns.y }}",
    NEST + "{{ ns.x is eq(ns.y) }}",
    NEST + "{{ [ns.x] | select('eq', ns.y) | list }}",
    NEST + "{{ ns.x ~ '' }}",
    PAIRS + "{{ {ns.x: 1} }}",
    PAIRS + "{{ messages[0].get(ns.x) }}",
    PAIRS + "{{ dict([[ns.x, 1]]) }}",
    PAIRS + "{{ ns.x in {} }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    # Source
    "{{ " + "(" * 6_000 + "1" + ")" * 6_000 + " }}",
    "{{ " + "[" * 30_000 + " }}",
    "{{ " + "not " * 9_000 + "1 }}",
    "{{ " + "-" * 30_000 + "1 }}",
    "{% if 1 %}" * 4_000 + "{% endif %}" * 2_000,
    "{{ " + "1 + " * 9_000 + "1 }}",
    "{{ 1" + " | string" * 6_000 + " }}",
    "{{ 1" + ".a" * 20_000 + " }}",
    "{{ " + "1 if 1 else " * 4_000 + "1 }}",
    "{{ [" + "1," * 31_000 + "] }}",
]
"""All of these are over before they cost anything worth the name."""


def outcome(template: str) -> str | None:
    """Return what a template writes, or None if it was refused with a typed error."""
    try:
        return ChatTemplate(template).render(VARIABLES)
    except (ModelFormatError, RequestError):
        return None


@pytest.mark.parametrize("expression", ESCAPES)
def test_sec_03_a_template_cannot_reach_python(expression: str) -> None:
    for template in (
        "{{ " + expression + " }}",
        "{% set x = " + expression + " %}{{ x.__globals__ }}",
        "{% for x in [" + expression + "] %}{{ x }}{% endfor %}",
    ):
        assert outcome(template) in (None, "")


@pytest.mark.parametrize("template", FORBIDDEN_STATEMENTS)
def test_sec_03_what_no_chat_template_needs_is_refused(template: str) -> None:
    assert outcome(template) is None


def test_sec_03_hostile_templates_open_import_and_start_nothing() -> None:
    for template in ["{{ 1 }}", "{{ strftime_now('%Y') }}", "{{ messages | tojson }}"]:
        outcome(template)  # what Python loads once is loaded
    seen: list[str] = []
    watching = True

    def watch(event: str, args: tuple[object, ...]) -> None:
        if watching and event.split(".")[0] in ("open", "os", "subprocess", "import", "socket", "ctypes", "shutil"):
            seen.append(f"{event} {args}")

    sys.addaudithook(watch)
    for expression in ESCAPES:
        outcome("{{ " + expression + " }}")
    for template in FORBIDDEN_STATEMENTS:
        outcome(template)
    watching = False
    assert seen == []


@pytest.mark.parametrize("template", BOMBS, ids=[f"{index}: {bomb[:60]}" for index, bomb in enumerate(BOMBS)])
def test_sec_04_a_bomb_is_defused(template: str) -> None:
    gc.disable()  # a collection of all that the tests before have left takes seconds
    try:
        start = time.thread_time()
        assert outcome(template) is None
        assert time.thread_time() - start < 2, "a tenth of that on an idle machine"
    finally:
        gc.enable()
    tracemalloc.start()
    try:
        outcome(template)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100 << 20


def test_sec_24_nothing_prints_a_memory_address() -> None:
    text = outcome(
        "{% macro m() %}{% endmacro %}{% set ns = namespace(x=1) %}{% for x in [1] %}"
        "{{ [range, messages[0].get, ''.upper, loop, loop.cycle, ns, m, missing] }}{{ self }}{{ loop }}{% endfor %}"
    )
    assert text is not None
    assert "0x" not in text
    assert "<function>" in text


def test_the_allowance_grows_with_the_conversation_and_suffices_for_the_largest() -> None:
    source = "{% for m in messages %}{% for n in messages[:20] %}{{ m.role }}{% endfor %}{{ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "words " * 300}] * 1024
    text = ChatTemplate(source).render({"messages": messages})
    assert len(text) == 1024 * (20 * 4 + 1800)


ATOMS = [
    *(
        "messages",
        "tools",
        "messages[0]",
        "messages[0].content",
        "''",
        "'a'",
        "1",
        "1.5",
        "none",
        "[]",
        "{}",
        "ns",
        "loop",
    ),
    *("namespace", "range", "dict", "raise_exception", "strftime_now", "self", "m", "missing", "ns.x", "true"),
]
NAMES = [
    *(
        "__class__",
        "__init__",
        "__globals__",
        "format",
        "join",
        "items",
        "get",
        "x",
        "upper",
        "split",
        "replace",
        "keys",
    ),
    *("_undefined_obj", "function", "receiver", "call", "environment", "mro", "pop", "cycle", "changed", "index0"),
]
FILTER_NAMES = ["list", "join", "tojson", "string", "length", "first", "items", "attr", "map", "select", "int", "upper"]


def random_expression(rng: random.Random, depth: int) -> str:
    if depth == 0:
        return rng.choice(ATOMS)
    inner = random_expression(rng, depth - 1)
    other = random_expression(rng, depth - 1)
    return rng.choice(
        [
            *(f"{inner}.{rng.choice(NAMES)}", f"{inner}['{rng.choice(NAMES)}']", f"{inner}({other})", f"{inner}()"),
            *(
                f"({inner} {rng.choice('+-*/%~')} {other})",
                f"{inner}[{other}]",
                f"{inner}[{other}:]",
                f"[{inner}, {other}]",
            ),
            *(f"({inner} | {rng.choice(FILTER_NAMES)})", f"({inner} | {rng.choice(FILTER_NAMES)}({other}))"),
            *(f"({inner} == {other})", f"({inner} in {other})", f"({inner} if {other})", f"{{{inner}: {other}}}"),
        ]
    )


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=300)
def test_sec_04_random_programs_end_with_text_or_a_typed_error(seed: int) -> None:
    rng = random.Random(seed)
    first, second, third = (random_expression(rng, rng.randint(1, 5)) for _ in range(3))
    text = outcome(
        "{% macro m(a, b=1) %}{{ a }}{{ " + first + " }}{% endmacro %}{% set ns = namespace(x=1) %}"
        "{% for i in " + second + " %}{% set ns.x = " + first + " %}{{ " + third + " }}{% endfor %}{{ " + second + " }}"
    )
    assert text is None or not any(
        word in text for word in ("<class", "<function ", "<module", "<built-in", "object at")
    )
