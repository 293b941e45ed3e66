"""The world in which a chat template lives: a few functions, a few methods, and a budget for everything that can grow.

A template comes with a model file, so it is a stranger's program. It reaches plain data and what this file lists, by
name, and nothing else: an attribute that is not listed does not exist, whatever it is asked of. What a template can
repeat or enlarge (loops, calls, text, comparisons) is paid for from a `Budget` before it happens; the rest is bounded
by the length of its source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn, cast

from jinja2 import Undefined, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from qwenstack.tokenizer.template_budget import Budget
from qwenstack.tokenizer.template_filters import (
    COMPARING_TESTS,
    budget_of,
    chat_filters,
    chat_tests,
    join,
    replace,
    small,
    words,
    write,
)

_MAX_EXPONENT = 64
_MAX_STRFTIME_CHARS = 64

_METHODS: Mapping[type, frozenset[str]] = {
    str: words(
        "capitalize count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric isspace "
        "istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit "
        "rstrip split splitlines startswith strip swapcase title upper"
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
}
_LOOP_VALUES = words("depth depth0 first index index0 last length nextitem previtem revindex revindex0")
_LOOP_METHODS = frozenset({"changed", "cycle"})
_MISSING = object()


class RefusalError(TemplateError):
    """The template called `raise_exception`: it does not take this conversation."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Function:
    """A function that a template may call; only this module makes them."""

    function: Callable[..., object]

    def __repr__(self) -> str:
        return "<function>"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Method:
    """A listed method of a string or an object."""

    receiver: str | dict[object, object]
    name: str

    def __repr__(self) -> str:
        return "<method>"

    def call(self, budget: Budget, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """Call it, paying for its receiver and what it makes."""
        if isinstance(self.receiver, str):
            budget.allow_text(len(self.receiver))
            if self.name == "join":
                return join(budget, self.receiver, *args, **kwargs)
            if self.name == "replace":
                return replace(budget, self.receiver, *args, **kwargs)
        result: object = getattr(self.receiver, self.name)(*args, **kwargs)
        if self.name in ("items", "keys", "values"):
            result = list(cast("Iterable[object]", result))
        if isinstance(result, list):
            budget.spend(len(cast("list[object]", result)))
        return cast("object", result)


class _Namespace(Namespace):
    """Variables that outlive a loop; prints and compares as one thing, whatever it holds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        attributes: dict[str, object] = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


class _GenerationTag(Extension):
    """`{% generation %}` marks the model's own words for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012 - declared so by the base class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja with transformers' settings for chat templates, closed as the module says."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        """Replace Jinja's tables by this module's lists."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _GenerationTag],
            optimized=False,  # constant expressions are computed under the budget, not while compiling
            finalize=write,
            cache_size=0,
        )
        self.filters = chat_filters()
        self.tests = chat_tests()
        self.globals = {
            "dict": _Function(dict),
            "namespace": _Function(_Namespace),
            "raise_exception": _Function(_raise_exception),
            "range": _Function(range),
            "strftime_now": _Function(_strftime_now),
        }

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Look `obj.attribute` up: a listed attribute first, then an item."""
        value = _listed_attribute(obj, attribute)
        if value is _MISSING:
            value = _item(obj, attribute)
        return self.undefined(obj=obj, name=attribute) if value is _MISSING else value

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Look `obj[argument]` up: an item first, then a listed attribute."""
        value = _item(obj, argument)
        if value is _MISSING and isinstance(argument, str):
            value = _listed_attribute(obj, argument)
        return self.undefined(obj=obj, name=argument) if value is _MISSING else value

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of this module, a listed method, or a macro of the template itself."""
        budget = budget_of(context)
        budget.spend(2)
        if isinstance(obj, (Macro, Undefined)):
            return context.call(obj, *args, **kwargs)
        # Jinja passes these along for functions that ask for the context.
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        for arg in (*args, *kwargs.values()):
            budget.weigh(arg)
        if isinstance(obj, _Function):
            return obj.function(*args, **kwargs)
        if isinstance(obj, _Method):
            return obj.call(budget, args, kwargs)
        raise SecurityError(f"it calls a value of type {type(obj).__name__!r}")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`, paying for what it makes."""
        budget = budget_of(context)
        budget.spend(1)
        if isinstance(left, str) and operator == "%":
            raise SecurityError("it formats text with `%`")
        if operator == "+":
            _pay_for_sum(budget, left, right)
        elif operator == "*":
            _pay_for_repetition(budget, left, right)
            _pay_for_repetition(budget, right, left)
        elif operator == "**" and not (isinstance(right, int) and abs(right) <= _MAX_EXPONENT):
            raise SecurityError(f"it raises a number to a power other than a whole one up to {_MAX_EXPONENT}")
        return small(super().call_binop(context, operator, left, right))


class Meter(NodeTransformer):
    """Put the budget where Jinja itself has no hook: loops, `~`, comparisons, slices, keys and the template's text."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja dispatches on the name
        """Pay for each turn."""
        self.generic_visit(node)
        node.iter = _through(" turns", cast("nodes.Expr", node.iter))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """Pay for joined text."""
        self.generic_visit(node)
        return _through(" concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """Pay for walking through both sides."""
        self.generic_visit(node)
        node.expr = _weighed(node.expr)
        for operand in node.ops:
            operand.expr = _weighed(operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        """Pay for tests that compare."""
        self.generic_visit(node)
        if node.name in COMPARING_TESTS:
            node.node = _weighed(node.node)
            node.args = [_weighed(arg) for arg in node.args]
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        """Pay for hashing a key."""
        self.generic_visit(node)
        node.key = _weighed(node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """Pay for the copy that a slice makes."""
        self.generic_visit(node)
        is_slice = isinstance(node.arg, nodes.Slice)  # pyright: ignore[reportUnnecessaryIsInstance] - see Jinja's parser
        return _through(" slice", node) if is_slice else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802
        """Pay for the template's own text as for any other."""
        return nodes.Const(node.data, lineno=node.lineno)


def _through(name: str, node: nodes.Expr) -> nodes.Expr:
    """Send a value through an internal filter; the space in its name keeps templates from using it."""
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _weighed(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _through(" weigh", node)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"it names a variable {name!r}")


def _listed_attribute(obj: Any, name: str) -> Any:
    if name in _METHODS.get(obj.__class__, ()):
        return _Method(obj, name)
    if isinstance(obj, LoopContext):
        if name in _LOOP_VALUES:
            return getattr(obj, name)
        return _Function(getattr(obj, name)) if name in _LOOP_METHODS else _MISSING
    if isinstance(obj, (Undefined, _Namespace)) and not name.startswith("_"):
        return getattr(obj, name, _MISSING)  # an undefined value raises here and says what is undefined
    return _MISSING


def _item(obj: Any, key: Any) -> Any:
    if isinstance(obj, Undefined):
        return obj[key]  # raises and says what is undefined
    # A tuple as a key is hashed all through, which can take for ever if it shares its parts with itself.
    if not isinstance(obj, (str, list, tuple, dict)) or isinstance(key, tuple):
        return _MISSING
    try:
        return cast("Any", obj)[key]
    except (TypeError, LookupError):
        return _MISSING


def _pay_for_sum(budget: Budget, left: object, right: object) -> None:
    if isinstance(left, str) and isinstance(right, str):
        budget.allow_text(len(left) + len(right))
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        budget.spend(len(cast("list[object]", left)) + len(cast("list[object]", right)))


def _pay_for_repetition(budget: Budget, sequence: object, times: object) -> None:
    if isinstance(times, int) and times > 0:
        if isinstance(sequence, str):
            budget.allow_text(len(sequence) * times)
        elif isinstance(sequence, (list, tuple)):
            budget.spend(len(cast("list[object]", sequence)) * times)


def _raise_exception(message: object) -> NoReturn:
    raise RefusalError(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _MAX_STRFTIME_CHARS:
        raise SecurityError(f"it formats the date with more than {_MAX_STRFTIME_CHARS} characters")
    return datetime.now().strftime(pattern)
