"""One renderer for every chat template, whoever wrote it.

Before Jinja's parser sees a template its length and nesting are checked; before the result is compiled, its constructs;
while it renders, every loop, call and text is paid for (`template_sandbox.py`). What remains: the parser and Python's
compiler run unmetered over at most 64 KiB of source, once a model, and a template may still write nonsense, since it
decides what the model reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from jinja2 import Template, TemplateError, nodes

from qwenstack.core.errors import ModelFormatError, RequestError
from qwenstack.tokenizer.template_budget import Budget, BudgetExceededError
from qwenstack.tokenizer.template_filters import BUDGET
from qwenstack.tokenizer.template_sandbox import Meter, RefusalError, TemplateSandbox

MAX_SOURCE_CHARS = 1 << 16
MAX_DEPTH = 64
"""Of brackets, of blocks, of signs in a row, and of the syntax tree. Qwen3's template has a tree of depth 17."""
MAX_WORDS = 20_000
"""Names, numbers, texts and signs of the source, and as many nodes of its tree; Qwen3's template has 1,000."""

_BLOCKS = frozenset({"for", "if", "macro", "generation", "set", "with"})
_ALLOWED_NODES: frozenset[type[nodes.Node]] = frozenset(
    {
        *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Break, nodes.Continue),
        *(nodes.Assign, nodes.AssignBlock, nodes.Macro, nodes.With, nodes.Name, nodes.NSRef, nodes.Const),
        *(nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.Slice, nodes.Getattr, nodes.Getitem),
        *(nodes.Call, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand, nodes.CondExpr, nodes.Concat),
        *(nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div),
        *(nodes.FloorDiv, nodes.Mod, nodes.Pow),
    }
)


class ChatTemplate:
    """A compiled chat template.

    Raises:
        ModelFormatError: the source is too long or nested too deeply, no template, or uses what no chat template needs.
    """

    def __init__(self, source: str) -> None:
        """Check and compile."""
        self.source = source
        if len(source) > MAX_SOURCE_CHARS:
            raise _broken(f"it has {len(source)} characters; at most {MAX_SOURCE_CHARS} are accepted")
        environment = TemplateSandbox()
        try:
            _check_nesting(environment, source)
            tree = environment.parse(source)
            _check_tree(tree)
            self.names = frozenset(name.name for name in tree.find_all(nodes.Name))
            """Variables that it reads or sets."""
            tree = Meter().visit(tree)
            tree.set_environment(environment)
            code = environment.compile(tree, "<chat template>")
        except TemplateError as error:
            raise _broken(str(error)) from error
        except Exception as error:  # lexer, parser and compiler fail in many ways on hostile source; all mean the same
            raise _broken(f"it cannot be compiled ({type(error).__name__}: {error})") from error
        self._template = Template.from_code(environment, code, dict(environment.globals))

    def render(self, variables: Mapping[str, object]) -> str:
        """Write a conversation.

        Args:
            variables: plain data only: what JSON can say.

        Raises:
            RequestError: the template refuses the conversation.
            ModelFormatError: the template fails or does more than a conversation of this size needs.
        """
        try:
            return self._template.render({**variables, BUDGET: Budget(variables)})
        except RefusalError as error:
            raise RequestError(
                f"The model's chat template refuses these messages: {error}", param="messages", code="template_refused"
            ) from error
        except BudgetExceededError as error:
            raise _broken(str(error)) from error
        except Exception as error:  # a stranger's program may fail in any way; the request gets an answer all the same
            raise _broken(f"it fails on these messages ({type(error).__name__}: {error})") from error


def _broken(reason: str) -> ModelFormatError:
    return ModelFormatError(f"The model's chat template cannot be used: {reason}.")


def _check_nesting(environment: TemplateSandbox, source: str) -> None:
    """Refuse what would make the recursive parser dive, looking at the flat list of tokens only."""
    brackets = blocks = signs = num_words = 0
    is_tag = False
    for line, kind, value in environment.lex(source):
        if kind in ("whitespace", "comment"):
            continue
        num_words += 1
        if num_words > MAX_WORDS:
            raise _broken(f"it has more than {MAX_WORDS} words and signs")
        if kind == "operator" and value in "([{":
            brackets += 1
        elif kind == "operator" and value in ")]}":
            brackets -= 1
        elif is_tag and value in _BLOCKS:
            blocks += 1
        elif is_tag and value.startswith("end"):
            blocks = max(0, blocks - 1)
        signs = signs + 1 if value in ("not", "-", "+") else 0
        if max(brackets, blocks, signs) > MAX_DEPTH:
            raise _broken(f"line {line} is nested more than {MAX_DEPTH} deep")
        is_tag = kind == "block_begin"


def _check_tree(tree: nodes.Template) -> None:
    """Refuse constructs that no chat template needs, and trees that would make the compiler dive."""
    waiting: deque[tuple[nodes.Node, int]] = deque([(tree, 1)])
    num_nodes = 0
    while waiting:
        node, depth = waiting.popleft()
        num_nodes += 1
        if type(node) not in _ALLOWED_NODES:
            raise _broken(f"line {node.lineno} uses {type(node).__name__}, which is not supported")
        if isinstance(node, nodes.For) and node.recursive:
            raise _broken(f"line {node.lineno} uses a recursive loop, which is not supported")
        if isinstance(node, (nodes.Call, nodes.Filter, nodes.Test)) and (node.dyn_args or node.dyn_kwargs):
            raise _broken(f"line {node.lineno} passes arguments with `*`, which is not supported")
        if depth > MAX_DEPTH or num_nodes > MAX_WORDS:
            raise _broken(f"it is nested more than {MAX_DEPTH} deep or has more than {MAX_WORDS} parts")
        waiting.extend((child, depth + 1) for child in node.iter_child_nodes())
