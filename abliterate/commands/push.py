"""``push``: check, show what would be sent, and send it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from abliterate.checkpoint.licence import CARD
from abliterate.checkpoint.sums import SUMS, published_files, to_hash, write_sums
from abliterate.config import PushConfig
from abliterate.errors import CheckError, InputError
from abliterate.files import write_text
from abliterate.forecast.words import size
from abliterate.publishing.card import published_card
from abliterate.publishing.checkpoint import Checkpoint, find_checkpoint
from abliterate.publishing.hub import check_repo, check_token, upload, will_be_public
from abliterate.publishing.reasons import Reasons, base_of, forbidden, licence_of, not_kept, not_verified, notice
from abliterate.report.licences import UNKNOWN, names_of, terms_of
from abliterate.terminal.console import HarmlessConsole
from abliterate.terminal.progress import stage


def push(config: PushConfig, folder: Path, repo: str) -> str:
    """Publish the checkpoint in ``folder`` (or in a run's folder) as ``repo``. Returns a line that says what was done.

    Raises InputError if the licence is unknown or its terms are not met, and for errors of the Hub; CheckError if a check did not hold
    and no reason is given to publish even so. A dry run collects all reasons, shows all but the first, and raises the first.
    """
    name = check_repo(repo)
    made = find_checkpoint(folder)
    licence, stated = licence_of(made, config.license)
    terms = terms_of(licence, made.base)
    reasons = Reasons(all_told=config.dry_run)
    for words in forbidden(made, licence, terms, name, config.license):
        reasons.add(InputError(words))
    if not config.dry_run:
        check_token()
    failed, verified = _checked(made, config, reasons)
    card = published_card(made.card, name, stated, terms, failed if config.even_so else (), config.even_so)
    new = {CARD: card, **notice(made, terms)}
    told = {"even so": config.even_so} if failed and config.even_so else {}
    facts = {"repository": f"{repo} ({_seen_by(repo, config)})", "licence": ", ".join(names_of(licence)) or UNKNOWN, "verify": verified}
    _show(made, new, {**facts, **told}, [str(error) for error in reasons.told[1:]])
    if reasons.told:
        raise reasons.told[0]
    if config.dry_run:
        return "dry run: nothing was sent and nothing written"
    for file, text in new.items():
        write_text(text, made.path / file)
    with stage(f"bytes hashed ({SUMS})", to_hash(made.path)) as advance:
        write_sums(made.path, advance)
    return f"{repo}: {upload(made.path, published_files(made.path), repo, config.public)}"


def _checked(made: Checkpoint, config: PushConfig, reasons: Reasons) -> tuple[list[str], str]:
    """The checks that did not hold (reasons not to publish, unless --even-so is given), and verify's verdict in a few words."""
    failed = not_kept(made)
    try:
        wrong = not_verified(made, config)
        looked = "" if base_of(made, config) else " (edited tensors only; the base was not found, give it with --base)"
        verified = "did not hold" if wrong else f"held{looked}"
    except InputError as error:
        reasons.add(error)
        wrong, verified = [], "not done"
    failed += wrong
    if failed and config.even_so is None:
        for words in failed if config.dry_run else ["; ".join(failed)]:
            reasons.add(CheckError(f'{made.path}: {words}; to publish it even so, give --even-so "reason", which the card will show'))
    return failed, verified


def _seen_by(repo: str, config: PushConfig) -> str:
    """Who will see it. A dry run does not ask the Hub whether the repository exists."""
    if config.dry_run:
        return "public, unless it already exists and is private" if config.public else "private"
    public = will_be_public(repo, config.public)
    return "public" if public else "stays private; --public makes only a new repository public" if config.public else "private"


def _size(nbytes: int) -> str:
    return size(nbytes) if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} kB"


def _show(made: Checkpoint, new: Mapping[str, str], facts: Mapping[str, str], refused: list[str]) -> None:
    """Print to stdout what will be sent, and the other reasons against it."""
    console = HarmlessConsole(highlight=False)
    sizes = {name: (made.path / name).stat().st_size for name in published_files(made.path)}
    sizes |= {name: len(text.encode("utf-8", "replace")) for name, text in new.items()}
    table = Table("file", "size", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name in sorted({*sizes, SUMS}):
        table.add_row(name, "rewritten" if name == SUMS else _size(sizes[name]))
    console.print(table)
    kept = "; ".join(f"{name}: {'shown' if holds else 'NOT shown'}" for name, holds in made.keep_tests)
    lines = [
        f"total: {_size(sum(sizes.values()))} in {len({*sizes, SUMS})} files",
        f"base: {made.base}",
        f"keep test: {kept or 'not measured'}",
    ]
    lines += [f"{what}: {value}" for what, value in facts.items()] + [f"also refused: {reason}" for reason in refused]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
