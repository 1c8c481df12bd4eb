"""The published card: the one in the folder, which people may have edited, plus what only publishing decides."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCard

from abliterate.report.card import one_line
from abliterate.report.licences import Terms, displayed

_DESPITE = "> **Published although a check did not hold.** "
_STATED = "> **Licence as stated by the publisher:** "


def published_card(
    card: ModelCard, name: str, licence: str | None, terms: Sequence[Terms], despite: Sequence[str], reason: str | None
) -> str:
    """The card's text for the repository ``name`` (without its owner).

    ``licence``: the publisher's statement, if the base's card states none. ``despite``: the checks that did not hold. ``reason``: why it
    is published even so. Publishing again does not repeat these lines.
    """
    if licence is not None:
        card.data["license"] = licence
    if card.data.get("eval_results"):
        card.data["model_name"] = name
    said = []
    if despite:
        said.append(f"{_DESPITE}{one_line('; '.join(despite))}. The publisher's reason: {one_line(reason)}")
    if licence is not None:
        said.append(f"{_STATED}{one_line(licence)}; the base's own card and files state none.")
    kept = [line for line in card.text.splitlines() if not line.startswith((_DESPITE, _STATED))]
    said += [f"**{words}**" for words in displayed(terms) if not any(words in line for line in kept)]
    card.text = _behind_the_title(kept, said)
    return str(card)


def _behind_the_title(lines: Sequence[str], said: Sequence[str]) -> str:
    at = next((i + 1 for i, line in enumerate(lines) if line.startswith("# ")), 0)
    before, after = list(lines[:at]), list(lines[at:])
    while after and not after[0].strip():
        after.pop(0)
    paragraphs = [part for line in said for part in (line, "")]
    return "\n".join([*before, *([""] if before else []), *paragraphs, *after]) + "\n"
