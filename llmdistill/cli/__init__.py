"""The command line: parses, prints, exits; no logic.

Data goes to stdout, everything else to stderr. Exit codes come from
`llmdistill.errors` and nowhere else. Nothing here imports torch.
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

import typer

from llmdistill.cli import ablate, calibrate, doctor, export, init, inspect, plan, refresh, run, schedule, stage, vision
from llmdistill.errors import Interrupted, LlmdistillError
from llmdistill.run.signals import stopping_in_order

app = typer.Typer(
    name="llmdistill",
    help="Turn a big language model into a small one for a job.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(run.run)
for _name in stage.HELP:
    app.command(_name, help=stage.HELP[_name])(stage.command(_name))
app.command("refresh")(refresh.refresh)
app.command("schedule")(schedule.schedule)
app.command("plan")(plan.plan)
app.command("calibrate")(calibrate.calibrate)
app.command("ablate")(ablate.ablate)
app.command("inspect")(inspect.inspect)
app.command("export")(export.export)
app.command("doctor")(doctor.doctor)
app.command("init")(init.init)
app.add_typer(vision.app, name="vision")


def main() -> None:
    """Entry point of the `llmdistill` command."""
    sys.exit(_exit_code())


def _exit_code() -> int:
    try:
        with stopping_in_order():
            result: Any = app(sys.argv[1:] or ["--help"], prog_name="llmdistill", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except LlmdistillError as error:
        _say_error(str(error))
        return error.exit_code
    except Interrupted as stop:
        _say_error(str(stop))
        print(f"to go on: {_without_keys(shlex.join(['llmdistill', *sys.argv[1:]]))}", file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit:  # how rich ends when whoever reads stdout has gone
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        _say_error(f"{error.filename}: {error.strerror}")
        return 1
    except Exception as error:
        usage = _usage_problem(error)
        if usage is None:
            raise
        _say_error(usage)
        return 2


def _say_error(text: str) -> None:
    print(f"error: {_without_keys(text)}", file=sys.stderr, flush=True)


def _without_keys(text: str) -> str:
    """What a person typed may hold a key by mistake; it is not repeated."""
    from llmdistill.pipeline_file import without_keys

    return without_keys(text)


def _usage_problem(error: Exception) -> str | None:
    """The message of a click error (unknown flag, missing argument), or None for any other error."""
    if not hasattr(error, "format_message"):
        return None
    text = " ".join(error.format_message().split())
    return f"{text} -> see llmdistill --help" if text else "see llmdistill --help"
