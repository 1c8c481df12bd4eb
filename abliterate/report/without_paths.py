"""What a report calls folders, files and servers: by no more than their own names. Where they lie is nobody else's business."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
# Settings whose values are places, or may be, also where they look like an id of the Hub; and what servers call models, which are no
# places where they look like one. Whatever else begins as a path does is one under any key.
_PLACES = {
    "model", "base", "derived", "reference", "layout", "study", "target", "baseline", "keep", "harmless", "prompts", "plan", "direction",
    "lm_eval",
}  # fmt: skip
_SERVED = {"engine_model", "derived_engine_model"}
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def without_paths(run: Mapping[str, Any]) -> dict[str, Any]:
    """run.json with every folder, file and server called by its own name, whatever key it stands under.

    Models that came from the Hub are called by their ids there, the base with the revision that it had.
    """
    settings = {key: _hub_ids(run).get(key) or _named(key, value) for key, value in run["settings"].items()}
    if run.get("hub_id") and run.get("revision"):
        settings["revision"] = run["revision"]
    return {**_plain(run), "settings": settings}


def _hub_ids(run: Mapping[str, Any]) -> dict[str, Any]:
    """The models' ids on the Hub by the settings that name them, None where they come from elsewhere."""
    own, others = run.get("hub_id"), {which: (run.get(which) or {}).get("hub_id") for which in ("derived", "reference")}
    return {"model": own, "base": own, **others}


def said_without_paths(text: str, run: Mapping[str, Any]) -> str:
    """What is said of a run, an error's words perhaps, with the places that run.json knows called by their names."""
    known = {place: name for key, value in run["settings"].items() for place, name in _places(key, value)}
    known |= dict(_places("", {key: value for key, value in run.items() if key != "settings"}))
    for place in sorted(known, key=len, reverse=True):
        text = text.replace(place, known[place])
    return text


def judge_without_paths(name: str) -> str:
    """A judge's name without where its server or its folder is; a classifier of the Hub keeps its id there."""
    kind, _, given = name.partition(":")
    if kind == "chat":
        _, mark, model = given.partition("#")
        return f"chat:SERVER{mark}{_named('judge', model)}"
    if kind == "classifier" and (not HUB_ID.fullmatch(given) or Path(given).is_dir()):
        return f"classifier:{_named('model', given)}"
    return name


def _plain(value: Any) -> Any:
    """What is no setting, with everything in it that is a path or a URL called by its name."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return _named("", value)


def _places(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every folder, file or server below a value, with its name."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _places("", inner)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _places(key, each)
    elif isinstance(value, str) and (name := _named(key, value)) != value:
        yield value, name


def _named(key: str, value: Any) -> Any:
    """A setting's value without the way to it: a URL becomes a word that stands for it, a path its last part."""
    if isinstance(value, list | tuple):
        return [_named(key, each) for each in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        return "DATABASE" if key == "study" else "SERVER"
    if value.startswith("hf:"):
        dataset, colon, rest = value.removeprefix("hf:").partition(":")
        return f"hf:{dataset if HUB_ID.fullmatch(dataset) else Path(dataset).name}{colon}{rest}"
    if not (key in _PLACES or is_path(value) or (key in _SERVED and not HUB_ID.fullmatch(value))):
        return value
    name = as_path(value).name
    return name if name.strip("~.") else key.upper()


def is_path(text: str) -> bool:
    """Whether a text begins as a path does, here or on another machine."""
    return text.startswith(("/", "~", ".")) or _WINDOWS.match(text) is not None


def as_path(text: str) -> PurePath:
    """A path, of whichever machine it is."""
    return PureWindowsPath(text) if _WINDOWS.match(text) else Path(text)
