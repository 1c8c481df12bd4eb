"""Parse, validate, call. Only the commands import torch and transformers, so that --help is quick."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
import typer.main
from typer.exceptions import Abort, TyperException

from abliterate import __version__
from abliterate.cli.commands import register
from abliterate.cli.options import flags_of_several, repeat_flags
from abliterate.errors import CheckError, InputError
from abliterate.terminal.harmless import echo

app = typer.Typer(
    name="abliterate",
    help="Find, measure and remove a chosen kind of refusal in an open-weight language model (directional ablation).",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 a check did not hold, 2 bad input, 130 interrupted."""
    try:
        program = typer.main.get_command(app)
        given = repeat_flags(sys.argv[1:] if arguments is None else arguments, flags_of_several(program))
        if program(given or ["--help"], standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
        return 0
    except TyperException as error:
        return _fail(error.format_message().replace("\n", " "), 2)
    except (InputError, CheckError) as error:
        return _fail(str(error), 2 if isinstance(error, InputError) else 1)
    except (KeyboardInterrupt, Abort):
        return _fail("interrupted; run the same command again to resume", INTERRUPTED)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or "while writing"
            return _fail(f"no space left on the disk ({where}); free some space and run the same command again to resume", 2)
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
