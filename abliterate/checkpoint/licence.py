"""The licence that a model's folder states: the front matter of its card, and its licence files. Nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from abliterate.checkpoint.records import Licence
from abliterate.files import Json

CARD = "README.md"
_READ = ("license", "license_name", "license_link", "base_model")
_FILES = ("license*", "licence*", "notice*", "copying*", "use_policy*")


def stated_licence(folder: Path) -> Licence:
    """The licence of a model's folder, from its card and its files."""
    matter = _front_matter(folder / CARD)
    return Licence(
        ids=tuple(text.lower() for text in _texts(matter["license"])),
        name=_text(matter["license_name"]),
        link=_text(matter["license_link"]),
        files=tuple(licence_files(folder)),
        bases=tuple(_texts(matter["base_model"])),
    )


def licence_files(folder: Path) -> list[str]:
    """Names of the licence files directly in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and _is_licence(path.name))


def _is_licence(name: str) -> bool:
    return any(fnmatch(name.lower(), pattern) for pattern in _FILES)


def _front_matter(card: Path) -> Json:
    """The needed fields of the card's metadata; None for missing fields, and for all if there is no readable card."""
    try:
        content = card.read_text(encoding="utf-8")
        data: Any = ModelCard(content, ignore_metadata_errors=True).data if content.lstrip().startswith("---") else {}
        return {key: data.get(key) for key in _READ}
    except Exception:  # YAML and the Hub's reader raise many errors for a broken card; none should stop an edit
        return dict.fromkeys(_READ)


def _texts(value: Any) -> list[str]:
    values: Iterable[Any] = value if isinstance(value, list) else [value]
    return [text for item in values if (text := _text(item)) is not None]


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None
