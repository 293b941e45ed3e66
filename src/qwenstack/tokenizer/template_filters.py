"""The filters and tests of chat templates. Each pays for what it walks through or makes before it does so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from jinja2 import Undefined, pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.tests import TESTS

from qwenstack.tokenizer.template_budget import Budget

BUDGET = "budget of this rendering"
"""Where a rendering's variables hold its budget; a name that no template can write."""

Filter = Callable[..., object]


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


COMPARING_TESTS = words("== != < <= > >= eq equalto ge greaterthan gt in le lessthan lower lt ne upper")
"""Tests that walk through both values, so that both must be weighed first."""

_CHEAP_TESTS = words(
    "boolean defined false float integer iterable mapping none number sameas sequence string true undefined"
)
_MAX_INTEGER_BITS = 256
_MAX_JSON_INDENT = 8
_MAX_JSON_SEPARATOR_CHARS = 8

_JINJA_FILTERS = cast("Mapping[str, Filter]", FILTERS)
_JINJA_TESTS = cast("Mapping[str, Callable[..., bool]]", TESTS)


def budget_of(context: Context) -> Budget:
    """Return the budget of the rendering under way."""
    return cast("Budget", context.parent[BUDGET])


def small(value: object) -> object:
    """Pass a value on unless it is a very large whole number, whose arithmetic would take ever longer."""
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        raise SecurityError(f"it computes a whole number of more than {_MAX_INTEGER_BITS} bits")
    return value


def text_of(budget: Budget, value: object) -> str:
    """Write a value as text."""
    if type(value) is str:
        return value
    budget.weigh(value)
    return str(value)


@pass_context
def write(context: Context, value: object) -> str:
    """Pay for all that is written, into the result or into a variable."""
    budget = budget_of(context)
    return budget.write(text_of(budget, value))


def join(budget: Budget, separator: str, items: Iterable[object]) -> str:
    """Do `separator.join(items)`."""
    parts = cast("list[str]", list(items))
    budget.spend(len(parts))
    budget.allow_text(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def replace(budget: Budget, text: str, old: str, new: str, count: int = -1) -> str:
    """Do `text.replace(old, new, count)`."""
    times = text.count(old) if count < 0 else min(count, text.count(old))
    budget.allow_text(len(text) + times * max(0, len(new) - len(old)))
    return text.replace(old, new, count)


class PaidIteration:
    """What a loop runs over: each turn costs."""

    def __init__(self, items: Iterable[object], budget: Budget) -> None:
        """Wrap a sequence."""
        self._items = items
        self._budget = budget

    def __iter__(self) -> Iterator[object]:
        for item in self._items:
            self._budget.spend(2)
            yield item

    def __len__(self) -> int:
        return len(cast("Sequence[object]", self._items))


def _first(_budget: Budget, value: Iterable[object]) -> object:
    return next(iter(value), Undefined("The sequence is empty."))


def _last(_budget: Budget, value: Sequence[object]) -> object:
    return value[-1] if value else Undefined("The sequence is empty.")


def _int(_budget: Budget, value: object, default: int = 0, base: int = 10) -> object:
    return small(_JINJA_FILTERS["int"](value, default, base))


def _items(budget: Budget, value: Mapping[object, object] | Undefined) -> object:
    if isinstance(value, Undefined):
        return []
    budget.spend(len(value))
    return list(value.items())


def _join_filter(budget: Budget, value: Iterable[object], separator: str = "") -> str:
    return join(budget, separator, (text_of(budget, part) for part in value))


def _list(budget: Budget, value: Iterable[object]) -> object:
    return list(cast("Iterable[object]", budget.weigh(value)))


def _replace_filter(budget: Budget, value: object, old: str, new: str, count: int = -1) -> str:
    return replace(budget, text_of(budget, value), old, new, count)


def _same(_budget: Budget, value: object) -> object:
    return value


def _to_json(
    budget: Budget,
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as transformers does: not escaped for HTML, not for ASCII."""
    budget.weigh(value)
    if isinstance(indent, int) and indent > _MAX_JSON_INDENT:
        raise SecurityError(f"it indents JSON by more than {_MAX_JSON_INDENT}")
    if separators is not None and any(len(part) > _MAX_JSON_SEPARATOR_CHARS for part in separators):
        raise SecurityError(f"it separates JSON by more than {_MAX_JSON_SEPARATOR_CHARS} characters")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _concat(budget: Budget, values: Iterable[object]) -> str:
    return join(budget, "", (text_of(budget, value) for value in values))


def _slice(budget: Budget, value: object) -> object:
    if isinstance(value, str):
        budget.allow_text(len(value))
    elif isinstance(value, (list, tuple)):
        budget.spend(len(cast("Sequence[object]", value)))
    return cast("object", value)


def _turns(budget: Budget, value: Iterable[object]) -> object:
    return PaidIteration(value, budget)


def _weigh(budget: Budget, value: object) -> object:
    return budget.weigh(value)


def _cheap(name: str) -> Filter:
    def cheap_filter(_budget: Budget, value: object, *args: object, **kwargs: object) -> object:
        return _JINJA_FILTERS[name](value, *args, **kwargs)

    return cheap_filter


def _textual(name: str) -> Filter:
    def textual_filter(budget: Budget, value: object, *args: object) -> object:
        return _JINJA_FILTERS[name](budget.weigh(text_of(budget, value)), *args)

    return textual_filter


def _paying(function: Filter) -> Filter:
    """Turn a function of a budget and a value into a filter."""

    @pass_context
    def paying_filter(context: Context, value: object, *args: Any, **kwargs: Any) -> object:
        budget = budget_of(context)
        budget.spend(1)
        return function(budget, value, *args, **kwargs)

    return paying_filter


def _selecting(*, by_attribute: bool, keep: bool) -> Filter:
    """Make `select`, `reject`, `selectattr` or `rejectattr`."""

    @pass_context
    def selecting_filter(context: Context, value: Iterable[object], *args: Any) -> list[object]:
        budget_of(context).weigh([value, *args])
        path, test = (str(args[0]).split("."), args[1:]) if by_attribute else ([], args)

        def is_chosen(item: object) -> bool:
            for key in path:
                item = context.environment.getitem(item, int(key) if key.isdigit() else key)
            if not test:
                return bool(item)
            return bool(context.environment.call_test(test[0], item, test[1:], context=context))

        return [item for item in PaidIteration(value, budget_of(context)) if is_chosen(item) is keep]

    return selecting_filter


_PAYING_FILTERS: Mapping[str, Filter] = {
    **{name: _cheap(name) for name in ("count", "d", "default", "float", "length")},
    **{name: _textual(name) for name in ("capitalize", "lower", "title", "trim", "upper")},
    "first": _first,
    "int": _int,
    "items": _items,
    "join": _join_filter,
    "last": _last,
    "list": _list,
    "replace": _replace_filter,
    "safe": _same,
    "string": text_of,
    "tojson": _to_json,
    # What `template_sandbox.Meter` puts in; a template cannot write a name with a space.
    " concat": _concat,
    " slice": _slice,
    " turns": _turns,
    " weigh": _weigh,
}


def chat_filters() -> dict[str, Filter]:
    """Return all filters that a template may use, and the meter's own."""
    filters = {name: _paying(function) for name, function in _PAYING_FILTERS.items()}
    for by_attribute in (False, True):
        for keep in (False, True):
            name = ("select" if keep else "reject") + ("attr" if by_attribute else "")
            filters[name] = _selecting(by_attribute=by_attribute, keep=keep)
    return filters


def chat_tests() -> dict[str, Callable[..., bool]]:
    """Return all tests that a template may use."""
    tests: dict[str, Callable[..., bool]] = {name: _JINJA_TESTS[name] for name in COMPARING_TESTS | _CHEAP_TESTS}
    return {**tests, "even": _is_even, "odd": _is_odd}


def _is_even(value: object) -> bool:
    return _remainder(value) == 0


def _is_odd(value: object) -> bool:
    return _remainder(value) == 1


def _remainder(value: object) -> float:
    """Return `value % 2`, which would format if the value were text."""
    if not isinstance(value, (int, float)):
        raise TypeError(f"only numbers are even or odd, not {type(value).__name__!r}")
    return value % 2
