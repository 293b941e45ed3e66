"""The `qwenstack` command: its subcommands, and how their errors become a sentence and an exit code.

Exit codes: 0 it worked, 1 it failed, 2 it was asked for in a way that cannot work, 130 Ctrl-C.
Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from qwenstack import __version__
from qwenstack.cli.audit import audit
from qwenstack.cli.backup import backup, restore
from qwenstack.cli.bench import bench
from qwenstack.cli.cache import cache
from qwenstack.cli.chat.command import chat
from qwenstack.cli.config import config
from qwenstack.cli.doctor import doctor
from qwenstack.cli.keys import keys
from qwenstack.cli.models import models
from qwenstack.cli.pull import pull
from qwenstack.cli.replay import replay
from qwenstack.cli.serve import serve
from qwenstack.core.errors import ConfigError, QwenStackError

_EXIT_FAILURE = 1
_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130
_EXIT_BROKEN_PIPE = 141


def build_app() -> App:
    """Put the subcommands together; their modules import what is heavy only when they run."""
    app = App(
        name="qwenstack",
        help="From raw text to a served Qwen3 assistant, on your own machine.",
        version=__version__,
        help_format="plaintext",
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    for command in (chat, serve, keys, audit, backup, restore, pull, models, cache, bench, replay, config, doctor):
        app.command(command)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        build_app()(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except CycloptsError as error:
        return _fail(f"{str(error).rstrip()} See '{_help_of(error)}'.", _EXIT_USAGE)
    except ConfigError as error:
        return _fail(str(error), _EXIT_USAGE)
    except QwenStackError as error:
        return _fail(str(error), _EXIT_FAILURE)
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as in `qwenstack models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE
    return 0


def _fail(message: str, exit_code: int) -> int:
    sys.stderr.write(f"error: {message}\n")
    return exit_code


def _help_of(error: CycloptsError) -> str:
    return " ".join(["qwenstack", *(error.command_chain or ()), "--help"])
