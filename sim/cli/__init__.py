"""The command `opcycle`: registers the commands, and turns whatever goes wrong into one line and an exit code.

Exit codes: 0 done, 2 wrong input (one sentence on standard error), 130 interrupted, 1 anything else. Each command
imports what it needs when it runs; this module and `--help` need neither numpy nor pydantic.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from textwrap import shorten
from typing import Any

import typer

from sim.cli.claims import claims
from sim.cli.data import check, list_, schema
from sim.cli.run import compare, plot, simulate, trace
from sim.cli.sweep import cache, search, sweep
from sim.cli.unit import unit
from sim.cli.validate import validate
from sim.errors import ConfigError, nearest, not_among

DEBUG = "OPCYCLE_DEBUG"
INTERRUPTED = 130

app = typer.Typer(
    name="opcycle",
    help="Simulate transformers on accelerators, cycle by cycle, down to DRAM commands.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(simulate)
app.command()(trace)
app.command()(compare)
app.command()(plot)
app.command()(check)
app.command("list")(list_)
app.command()(schema)
app.command()(sweep)
app.command()(search)
app.command()(cache)
app.command()(claims)
app.command()(validate)
app.add_typer(unit)


@app.callback(invoke_without_command=True)
def _top(context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        from sim import __version__

        print(f"opcycle {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Entry point of the console script. A request to terminate is treated like an interruption from the keyboard."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; never raises, except with OPCYCLE_DEBUG set."""
    try:
        code = app(arguments, prog_name="opcycle", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer turns the key press into an exit code by itself
            return _say("interrupted", INTERRUPTED)
        return code if isinstance(code, int) else 0
    except ConfigError as error:
        return _say(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if hasattr(error, "format_message"):  # what typer raises for a wrong command line, whichever its version
            return _say(_usage(error), 2)
        if os.environ.get(DEBUG):
            raise
        kind = type(error).__name__
        what = shorten(str(error), 300, placeholder=" ...")
        return _say(f"internal error, {kind}: {what} (set {DEBUG}=1 to see the traceback)", 1)


def _terminate(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _say(sentence: str, code: int) -> int:
    print(f"opcycle: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _usage(error: Any) -> str:
    """A complaint of the command-line parser as one sentence with the nearest right name."""
    context = getattr(error, "ctx", None)
    where = context.command_path.removeprefix("opcycle").strip() if context is not None else ""
    message = error.format_message().strip().rstrip(".").replace("Value error, ", "")
    commands = list(getattr(context.command, "commands", {})) if context is not None else []
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and context is not None:
        known = [o for parameter in context.command.params for o in parameter.opts if o.startswith("--")]
        message = f"no such option {option!r}" + _hint(str(option), [*known, "--help"])
    elif "No such command" in message and commands:
        name = message.split("'")[1] if "'" in message else ""
        message = f"no such command {name!r}" + (_hint(name, commands) or f"; commands: {', '.join(commands)}")
    wrong = _wrong_number(error)
    if wrong:
        return f"{where}: {wrong}" if where else wrong
    choice = re.search(r"'([^']*)' is not one of (.*)$", message)
    if choice is not None:
        known = re.findall(r"'([^']*)'", choice.group(2))
        message = message[: choice.start()] + not_among("value", choice.group(1), known)
    return f"{where}: {message}" if where else message


_WANTED = {"int_parsing": "a whole number", "int_from_float": "a whole number", "float_parsing": "a number"}
_BOUNDS = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}


def _wrong_number(error: Any) -> str | None:
    """The complaint about a number in the words of our own readers, with its value; None where it is another one."""
    found: list[Any] = getattr(error.__cause__, "errors", list)()
    parameter = getattr(error, "param", None)
    if len(found) != 1 or parameter is None:
        return None
    kind, value = found[0]["type"], found[0]["input"]
    name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar or parameter.name
    if kind in _WANTED:
        return f"{name}: is {str(value)!r}, but must be {_WANTED[kind]}"
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"{name}: is {value}, but must be {words} {found[0]['ctx'][bound]}"
    return None


def _hint(name: str, names: list[str]) -> str:
    near = nearest(name, names)
    return f", nearest is {near!r}" if near else f"; allowed: {', '.join(names)}"
