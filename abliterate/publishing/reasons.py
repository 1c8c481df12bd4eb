"""Reasons not to publish a checkpoint: its base's licence, its keep tests, its proof."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from abliterate.checkpoint.checked import checked
from abliterate.checkpoint.records import NO_LICENCE, Licence
from abliterate.config import PushConfig, VerifyConfig
from abliterate.errors import CheckError, InputError
from abliterate.publishing.checkpoint import Checkpoint
from abliterate.report.licences import UNKNOWN, Terms, names_of, notices, refusals
from abliterate.terminal.progress import say

NOTICE = "NOTICE"


class Reasons:
    """The reasons not to publish. The first is raised at once, unless ``all_told``: then all are collected."""

    def __init__(self, all_told: bool) -> None:
        self.told: list[InputError | CheckError] = []
        self._all_told = all_told

    def add(self, reason: InputError | CheckError) -> None:
        if not self._all_told:
            raise reason
        self.told.append(reason)


def licence_of(made: Checkpoint, stated: str | None) -> tuple[Licence, str | None]:
    """The base's licence, and the publisher's statement of it, which counts only if the base's card states none."""
    found = made.licence or NO_LICENCE
    if stated is None or names_of(found):
        return found, None
    return found.model_copy(update={"ids": (stated.lower(),), "name": None}), stated.lower()


def forbidden(made: Checkpoint, licence: Licence, terms: Sequence[Terms], name: str, stated: str | None) -> Iterator[str]:
    """Why the licence forbids publishing the checkpoint under ``name``, or differs from ``--license``."""
    names = names_of(licence)
    if not names:
        yield (
            f"{made.path}: the licence is {UNKNOWN} (the card of {made.base} states none); find out which one applies and give it "
            "with --license ID (apache-2.0, mit, llama3.1, ...)"
        )
    elif stated is not None and stated.lower() not in (known.lower() for known in names):
        yield f"--license {stated!r}: the card of {made.base} says {', '.join(names)}, and a derived model keeps that licence"
    yield from refusals(terms, name, made.licence_files)
    there, missing = _notices(made, terms)
    if there and missing:
        yield f"{made.path / there[0]}: lacks the line that the licence requires ({missing[0]!r}); add it"


def notice(made: Checkpoint, terms: Sequence[Terms]) -> dict[str, str]:
    """The NOTICE file that the licences require; empty if the checkpoint has one or none is required."""
    there, missing = _notices(made, terms)
    return {NOTICE: "\n".join(missing) + "\n"} if missing and not there else {}


def _notices(made: Checkpoint, terms: Sequence[Terms]) -> tuple[list[str], list[str]]:
    """The existing NOTICE files, and the lines that the licences require but none of them has."""
    there = [file for file in made.licence_files if file.lower().startswith("notice")]
    text = "\n".join((made.path / file).read_text(encoding="utf-8", errors="replace") for file in there)
    return there, [line for line in notices(terms) if line not in text]


def not_kept(made: Checkpoint) -> list[str]:
    """Reasons from the run's keep tests, also if the tests have not run yet."""
    tests = made.keep_tests
    if made.asked_to_keep and not tests:
        return ["the run has no report yet, so whether refusals of its keep sets stay is not known; repeat the run command to finish it"]
    return [f"refusals of {name} were not shown to stay (the keep test did not hold)" for name, holds in tests if not holds]


def not_verified(made: Checkpoint, config: PushConfig) -> list[str]:
    """What verify finds wrong. Raises InputError if the base is not where it should be."""
    base = base_of(made, config)
    told = VerifyConfig(base=base, revision=config.revision, layout=config.layout, trust_remote_code=config.trust_remote_code)
    try:
        say(checked(told, made.path))
    except CheckError as error:
        return [f"verify: {error}".replace(f"{made.path}/", "").replace(f"{made.path}: ", "")]
    return []


def base_of(made: Checkpoint, config: PushConfig) -> str | None:
    """The base that verify compares with: --base, else the run's own base if it still exists."""
    return config.base or (str(made.base_folder) if made.base_folder else None)
