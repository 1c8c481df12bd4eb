"""``push``: check, show what would be sent, and send it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from abliterate.checkpoint.licence import CARD
from abliterate.checkpoint.sums import SUMS, published_files, to_hash, write_sums
from abliterate.commands import verify
from abliterate.config import PushConfig, VerifyConfig
from abliterate.errors import CheckError, InputError
from abliterate.planning.words import size
from abliterate.progress import say, stage
from abliterate.publishing.card import published_card
from abliterate.publishing.checkpoint import Checkpoint, find_checkpoint
from abliterate.publishing.hub import check_repo, check_token, upload
from abliterate.report.document import write_text
from abliterate.report.licences import UNKNOWN, Terms, names_of, notices, refusals, terms_of

NOTICE = "NOTICE"


def push(config: PushConfig, folder: Path, repo: str) -> str:
    """Publish the checkpoint in ``folder`` (or in a run's folder) as ``repo``. Returns what was done, in a line.

    Raises InputError for a licence that isn't known or asks for what isn't there, and for what the Hub says; CheckError where a check
    didn't hold and no reason is given to publish even so.
    """
    name = check_repo(repo)
    made = find_checkpoint(folder)
    licence = _licence(made, config.license)
    terms = terms_of(licence, made.base)
    for refusal in refusals(terms, name, made.licence_files):
        raise InputError(refusal)
    if not config.dry_run:
        check_token()
    failed = [*_not_kept(made), *_not_verified(made, config)]
    if failed and config.even_so is None:
        raise CheckError(f'{made.path}: {"; ".join(failed)}; --even-so "reason" publishes it, and the card says so')
    card = published_card(made.card, name, config.license, terms, failed, config.even_so)
    new = {CARD: card, **_notice(made, terms)}
    _show(made, repo, config, licence, new, failed)
    if config.dry_run:
        return "dry run: nothing was sent and nothing written"
    for file, text in new.items():
        write_text(text, made.path / file)
    with stage(f"bytes hashed ({SUMS})", to_hash(made.path)) as advance:
        write_sums(made.path, advance)
    return f"{repo}: {upload(made.path, published_files(made.path), repo, config.public)}"


def _licence(made: Checkpoint, stated: str | None) -> Mapping[str, Any]:
    """The base's licence, or the one stated where the base's card states none. Raises InputError where neither does."""
    found = made.proof.get("licence") or {"ids": [], "name": None, "link": None, "files": [], "bases": []}
    names = names_of(found)
    if stated is None:
        if not names:
            raise InputError(
                f"{made.path}: the licence is {UNKNOWN} (the card of {made.base} states none); find out under which it stands and say it "
                "with --license ID (apache-2.0, mit, llama3.1, ...)"
            )
        return found
    if names and stated.lower() not in (name.lower() for name in names):
        raise InputError(f"--license {stated!r}: the card of {made.base} says {', '.join(names)}, and a derived model stays under it")
    return {**found, "ids": [stated.lower()], "name": None}


def _not_kept(made: Checkpoint) -> list[str]:
    return [f"refusals of {name} were not shown to stay (the keep test did not hold)" for name, holds in made.keep_tests if not holds]


def _not_verified(made: Checkpoint, config: PushConfig) -> list[str]:
    base = _base(made, config)
    told = VerifyConfig(base=base, revision=config.revision, layout=config.layout, trust_remote_code=config.trust_remote_code)
    try:
        say(verify(told, made.path))
    except CheckError as error:
        return [f"verify: {error}".replace(f"{made.path}/", "").replace(f"{made.path}: ", "")]
    return []


def _base(made: Checkpoint, config: PushConfig) -> str | None:
    """The base that verify compares with: as told, else the run's own where it is still there."""
    return config.base or (str(made.base_folder) if made.base_folder else None)


def _size(nbytes: int) -> str:
    return size(nbytes) if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} kB"


def _notice(made: Checkpoint, terms: Sequence[Terms]) -> dict[str, str]:
    """The NOTICE file that the licences ask for, with what one of the base's holds already; empty where nothing is missing."""
    there = [file for file in made.licence_files if file.lower().startswith("notice")]
    text = "\n".join((made.path / file).read_text(encoding="utf-8", errors="replace") for file in there)
    missing = [line for line in notices(terms) if line not in text]
    if not missing:
        return {}
    if there:
        raise InputError(f"{made.path / there[0]}: lacks the line that the licence asks for ({missing[0]!r}); add it")
    return {NOTICE: "\n".join(missing) + "\n"}


def _show(
    made: Checkpoint, repo: str, config: PushConfig, licence: Mapping[str, Any], new: Mapping[str, str], failed: Sequence[str]
) -> None:
    """What will be sent, to stdout."""
    console = Console(highlight=False)
    sizes = {name: (made.path / name).stat().st_size for name in published_files(made.path)}
    sizes |= {name: len(text.encode("utf-8", "replace")) for name, text in new.items()}
    table = Table("file", "size", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name in sorted({*sizes, SUMS}):
        table.add_row(name, "written anew" if name == SUMS else _size(sizes[name]))
    console.print(table)
    kept = made.keep_tests
    looked = "" if _base(made, config) else " (the edited tensors alone; the base is not at hand, --base says where it is)"
    facts = {
        "sum": f"{_size(sum(sizes.values()))} in {len({*sizes, SUMS})} files",
        "repository": f"{repo} ({'public' if config.public else 'private'})",
        "licence": ", ".join(names_of(licence)),
        "base": made.base,
        "keep test": "; ".join(f"{name}: {'shown' if holds else 'NOT shown'}" for name, holds in kept) or "not measured",
        "verify": "did not hold" if any(reason.startswith("verify") for reason in failed) else f"held{looked}",
    }
    if failed:
        facts["even so"] = str(config.even_so)
    for what, value in facts.items():
        console.print(f"{what}: {value}", markup=False, soft_wrap=True)
