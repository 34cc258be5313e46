"""Command line: the table of commands, and the entry point that turns errors into a message and an exit code."""

import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from stagealign.base.errors import StagealignError
from stagealign.cli.alpaca import alpaca_eval, lc_win_rate
from stagealign.cli.boundary import boundary
from stagealign.cli.compare import compare
from stagealign.cli.demo import demo
from stagealign.cli.doctor import doctor
from stagealign.cli.export import export
from stagealign.cli.fetch import fetch
from stagealign.cli.list import list_cells
from stagealign.cli.plan import plan
from stagealign.cli.report import report
from stagealign.cli.run import run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which data does a policy need next, off-policy or on-policy? Reproduces arXiv 2508.10530.",
)
COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_cells,
    "run": run,
    "plan": plan,
    "export": export,
    "demo": demo,
    "report": report,
    "compare": compare,
    "fetch": fetch,
    "doctor": doctor,
    "boundary": boundary,
    "lc-win-rate": lc_win_rate,
    "alpaca-eval": alpaca_eval,
}
for name, command in COMMANDS.items():
    app.command(name)(command)

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
TERMINATED = 143
"""Exit code after SIGTERM."""


def main() -> None:
    """Runs the command line: a user's mistake prints one message; an interrupt or SIGTERM keeps finished artifacts."""
    code: int | None = INTERRUPTED
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: _interrupt(number, ended))
    try:
        code = app(standalone_mode=False)  # a command's exit code comes back as a value, an interrupt's too
    except StagealignError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        pass
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            error.show() if hasattr(error, "show") else _fail(str(error), 2)
            sys.exit(getattr(error, "exit_code", 2))
        sys.excepthook = _traceback
        raise
    if code == INTERRUPTED:
        what, code = ("terminated", TERMINATED) if ended else ("interrupted", INTERRUPTED)
        _fail(f"{what}; all that is built stays; run the same command to continue", code)
    sys.exit(code)


def _interrupt(number: int, ended: list[int]) -> None:
    """Ends the command as Ctrl-C does; later signals are ignored."""
    ended.append(number)
    if len(ended) == 1:
        raise KeyboardInterrupt


def _fail(message: str, code: int) -> None:
    from rich.console import Console

    from stagealign.base.terminal import Text

    Console(stderr=True).print(Text("stagealign: ", style="bold red") + Text(message), soft_wrap=True)
    sys.exit(code)


def _traceback(*error: Any) -> None:
    """Prints a traceback as Python does, without secrets and control codes."""
    import traceback

    from stagealign.base.secrets import without_secrets
    from stagealign.base.terminal import plain

    print(plain(without_secrets("".join(traceback.format_exception(*error)))), end="", file=sys.stderr)
