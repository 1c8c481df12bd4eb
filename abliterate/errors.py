"""The two errors that end a command; each carries one line for the user."""


class InputError(Exception):
    """Bad input: what is wrong, where, and what to do. The command line prints it and exits with 2."""


class CheckError(Exception):
    """The work was done but a check did not hold. The command line prints it and exits with 1."""


def first_line(error: BaseException, length: int = 160) -> str:
    """The first line of a library's message; also the second if the first ends with a colon (``Validation error:``); the kind of error if
    there is no message."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0])[:length]
