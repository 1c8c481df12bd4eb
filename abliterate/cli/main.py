"""Parse, validate, call. torch and transformers are imported inside the commands, so that --help is quick."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from abliterate import __version__
from abliterate.cli.commands import register
from abliterate.cli.options import repeat_flags
from abliterate.errors import CheckError, InputError
from abliterate.terminal.harmless import echo

app = typer.Typer(
    name="abliterate",
    help="Find, measure and remove a chosen kind of refusal in an open-weight language model (directional ablation).",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130
_SEVERAL = ("--target", "--baseline", "--keep", "--prompts", "--lm-eval", "--compare", "--estimators")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 a check did not hold, 2 bad input, 130 interrupted."""
    try:
        given = repeat_flags(sys.argv[1:] if arguments is None else arguments, _SEVERAL)
        if app(given or ["--help"], standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
        return 0
    except TyperException as error:
        return _fail(error.format_message().replace("\n", " "), 2)
    except (InputError, CheckError) as error:
        return _fail(str(error), 2 if isinstance(error, InputError) else 1)
    except (KeyboardInterrupt, Abort):
        return _fail("interrupted; the same command goes on where it stopped", INTERRUPTED)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(
                f"no space left on the disk ({error.filename or 'while writing'}); make room, the same command goes on",
                2,
            )
        if error.errno in (
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EEXIST,
            errno.ENAMETOOLONG,
            errno.EIO,
        ):
            return _fail(f"{error.filename}: {os.strerror(error.errno)}", 2)
        raise


def _fail(line: str, code: int) -> int:
    echo(f"abliterate: {' '.join(line.split())}", err=True)
    return code
