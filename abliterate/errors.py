"""The two ways in which a command ends other than well; each carries one line for the user."""


class InputError(Exception):
    """Bad input: what is wrong, where, and what to do. The command line prints it and exits with 2."""


class CheckError(Exception):
    """The work was done but a check did not hold. The command line prints it and exits with 1."""


def first_line(error: BaseException, length: int = 160) -> str:
    """The first line of a library's message, or the kind of error where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:length] if lines else type(error).__name__
