"""What a model's folder says of its licence: the front matter of its card, and the licence files beside it. Nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

CARD = "README.md"
_READ = ("license", "license_name", "license_link", "base_model")
_FILES = ("license*", "licence*", "notice*", "copying*", "use_policy*")


def stated_licence(folder: Path) -> dict[str, Any]:
    """``{ids, name, link, files, bases}`` of a model's folder.

    ``ids`` are the Hub's names of its licences (empty: the card states none), ``name`` and ``link`` what a card says beside
    ``other``, ``files`` the licence files in the folder, ``bases`` the models that the card calls its base.
    """
    matter = _front_matter(folder / CARD)
    return {
        "ids": [text.lower() for text in _texts(matter["license"])],
        "name": _text(matter["license_name"]),
        "link": _text(matter["license_link"]),
        "files": licence_files(folder),
        "bases": _texts(matter["base_model"]),
    }


def licence_files(folder: Path) -> list[str]:
    """Names of the licence files directly in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and _is_licence(path.name))


def _is_licence(name: str) -> bool:
    return any(fnmatch(name.lower(), pattern) for pattern in _FILES)


def _front_matter(card: Path) -> dict[str, Any]:
    """What is read of the card's metadata; None for what isn't there, and for all where there is no card that can be read."""
    try:
        content = card.read_text(encoding="utf-8")
        data: Any = ModelCard(content, ignore_metadata_errors=True).data if content.lstrip().startswith("---") else {}
        return {key: data.get(key) for key in _READ}
    except Exception:  # a broken card: YAML and the Hub's reader raise many kinds, and none is worth stopping an edit
        return dict.fromkeys(_READ)


def _texts(value: Any) -> list[str]:
    values: Iterable[Any] = value if isinstance(value, list) else [value]
    return [text for item in values if (text := _text(item)) is not None]


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None
