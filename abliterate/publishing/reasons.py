"""What stands against publishing a checkpoint: its base's licence, its keep tests, its proof."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from abliterate.checkpoint.checked import checked
from abliterate.config import PushConfig, VerifyConfig
from abliterate.errors import CheckError, InputError
from abliterate.publishing.checkpoint import Checkpoint
from abliterate.report.licences import UNKNOWN, Terms, names_of, notices, refusals
from abliterate.terminal.progress import say

NOTICE = "NOTICE"
_NONE_STATED: dict[str, Any] = {"ids": [], "name": None, "link": None, "files": [], "bases": []}


class Reasons:
    """The reasons not to publish. The first is raised at once, but where ``all_told``: then they are kept."""

    def __init__(self, all_told: bool) -> None:
        self.told: list[InputError | CheckError] = []
        self._all_told = all_told

    def add(self, reason: InputError | CheckError) -> None:
        if not self._all_told:
            raise reason
        self.told.append(reason)


def licence_of(made: Checkpoint, stated: str | None) -> tuple[Mapping[str, Any], str | None]:
    """The base's licence, and what the publisher states of it: only where the base's card states none is anything taken from that."""
    found = made.proof.get("licence") or _NONE_STATED
    if stated is None or names_of(found):
        return found, None
    return {**found, "ids": [stated.lower()], "name": None}, stated.lower()


def forbidden(made: Checkpoint, licence: Mapping[str, Any], terms: Sequence[Terms], name: str, stated: str | None) -> Iterator[str]:
    """Why the licence doesn't let the checkpoint be published under ``name``, or isn't the one that ``--license`` stated."""
    names = names_of(licence)
    if not names:
        yield (
            f"{made.path}: the licence is {UNKNOWN} (the card of {made.base} states none); find out under which it stands and say it "
            "with --license ID (apache-2.0, mit, llama3.1, ...)"
        )
    elif stated is not None and stated.lower() not in (known.lower() for known in names):
        yield f"--license {stated!r}: the card of {made.base} says {', '.join(names)}, and a derived model stays under it"
    yield from refusals(terms, name, made.licence_files)
    there, missing = _notices(made, terms)
    if there and missing:
        yield f"{made.path / there[0]}: lacks the line that the licence asks for ({missing[0]!r}); add it"


def notice(made: Checkpoint, terms: Sequence[Terms]) -> dict[str, str]:
    """The NOTICE file that the licences ask for; empty where one is there or nothing is asked for."""
    there, missing = _notices(made, terms)
    return {NOTICE: "\n".join(missing) + "\n"} if missing and not there else {}


def _notices(made: Checkpoint, terms: Sequence[Terms]) -> tuple[list[str], list[str]]:
    """The NOTICE files that are there, and the lines that the licences ask for and none of them has."""
    there = [file for file in made.licence_files if file.lower().startswith("notice")]
    text = "\n".join((made.path / file).read_text(encoding="utf-8", errors="replace") for file in there)
    return there, [line for line in notices(terms) if line not in text]


def not_kept(made: Checkpoint) -> list[str]:
    """What the run's keep tests say against it, also where they are still to come."""
    tests = made.keep_tests
    if made.asked_to_keep and not tests:
        return ["the run has not come to its report: whether refusals of its keep sets stay is not known (the same run command goes on)"]
    return [f"refusals of {name} were not shown to stay (the keep test did not hold)" for name, holds in tests if not holds]


def not_verified(made: Checkpoint, config: PushConfig) -> list[str]:
    """What verify finds wrong. Raises InputError where the base isn't where it is said to be."""
    base = base_of(made, config)
    told = VerifyConfig(base=base, revision=config.revision, layout=config.layout, trust_remote_code=config.trust_remote_code)
    try:
        say(checked(told, made.path))
    except CheckError as error:
        return [f"verify: {error}".replace(f"{made.path}/", "").replace(f"{made.path}: ", "")]
    return []


def base_of(made: Checkpoint, config: PushConfig) -> str | None:
    """The base that verify compares with: as told, else the run's own where it is still there."""
    return config.base or (str(made.base_folder) if made.base_folder else None)
