"""The run folder: what was asked, which stages are done, what they cost. Every file in it is whole or absent."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from blake3 import blake3

from abliterate import __version__
from abliterate.config import is_url
from abliterate.errors import InputError
from abliterate.files import check_place, whole_file, write_json
from abliterate.model.chat.clock import parsed

T = TypeVar("T")
SCHEMA = "abliterate/run/1"
# Files of a run folder that several stages know.
SELECTION, DIRECTIONS, WEIGHTS = "selection.json", "directions.json", "weights.json"
DRIFT, CONTROLS, RECOVERY, BENCHMARKS = "drift.json", "controls.json", "recovery.json", "benchmarks.json"
REPORT, RUN = "report.json", "run.json"
_COMPARED = ("settings", "prompts", "model_hashes")
# Settings that don't change what is measured; which model a server serves is noted and compared apart.
_MAY_CHANGE = ("edited_engine", "engine_model", "concurrency", "request_timeout", "patience", "transcripts")
_PACKAGES = ("torch", "transformers", "safetensors", "numpy", "scipy")


@dataclass(frozen=True)
class RunFolder:
    """An open run folder."""

    path: Path

    def stage(self, name: str, file: str, make: Callable[[], T], save: Callable[[T, Path], None], load: Callable[[Path], T]) -> T:
        """The stage's result: read back where its file exists, else made, saved under another name first, and timed."""
        final = self.path / file
        if final.exists():
            return load(final)
        with self.timed(name):
            made = make()
        with whole_file(final) as partial:
            save(made, partial)
        return made

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the block's seconds, and the process's peak memory, to what the run has cost so far."""
        started = time.monotonic()
        try:
            yield
        finally:
            cost = self.cost()
            cost["seconds"][name] = round(cost["seconds"].get(name, 0.0) + time.monotonic() - started, 2)
            cost["peak_rss_bytes"] = max(cost["peak_rss_bytes"], peak_rss_bytes())
            write_json(cost, self.path / "cost.json")

    def record(self) -> dict[str, Any]:
        """The content of run.json."""
        content: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        return content

    def identity(self) -> dict[str, Any]:
        """What its results come from: what is compared when it is opened again, and the versions that work on it now."""
        content = self.record()
        return {part: content[part] for part in _COMPARED} | {"abliterate": __version__, "versions": versions()}

    def note_engine(self, which: str, engine: Mapping[str, Any], begun: bool) -> None:
        """Say in run.json what writes the replies of the ``base`` or ``edited`` model.

        Raises InputError where the replies were ``begun`` by something else.
        """
        content = self.record()
        engines = content.setdefault("resolved", {}).setdefault("engines", {})
        before = engines.get(which)
        if begun and before is not None and _writer(before) != _writer(engine):
            raise InputError(
                f"{self.path}: replies of the {which} model are there already, written by {_writer(before)}, and now it would be "
                f"{_writer(engine)}; serve the same again, or give another --out"
            )
        if before != engine:
            engines[which] = dict(engine)
            write_json(content, self.path / "run.json")

    def cost(self) -> dict[str, Any]:
        file = self.path / "cost.json"
        return json.loads(file.read_text()) if file.exists() else {"seconds": {}, "peak_rss_bytes": 0}


def _writer(engine: Mapping[str, Any]) -> str:
    """What makes two engines give the same replies: their kind and, of a server, what it loaded."""
    served = engine.get("root") or engine.get("model")
    return f"{engine['kind']} ({served})" if served else str(engine["kind"])


def peak_rss_bytes() -> int:
    """Peak resident memory of this process (Linux counts KiB, macOS bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def open_run(path: Path, settings: Mapping[str, Any], record: Mapping[str, Any]) -> RunFolder:
    """Open a run folder for these settings, new or begun earlier.

    Raises InputError where the folder holds something else, or a run of other settings, naming the first that differs.
    """
    described = {
        "schema": SCHEMA,
        "abliterate": __version__,
        "settings": dict(settings),
        **record,
        "versions": versions(),
    }
    file = path / "run.json"
    if file.is_file():
        old = _recorded(file)
        _check_same(path, old, json.loads(json.dumps(described)))
        _note_clock(file, old, described)
        return RunFolder(path)
    check_place(path)
    path.mkdir(parents=True, exist_ok=True)
    write_json(described, file)
    return RunFolder(path)


def reopen_run(path: Path) -> RunFolder:
    """Open a run folder as it is, whatever its settings. Raises InputError where there is none."""
    file = path / "run.json"
    if not file.is_file():
        raise InputError(f"{path}: not a run folder (no run.json); give the folder of a run or an audit")
    _recorded(file)
    return RunFolder(path)


def recorded_clock(path: Path) -> datetime | None:
    """The time that the prompts of the run in a folder show (``clock_of``); None where no run was begun there."""
    file = path / "run.json"
    return clock_of(_recorded(file), file) if file.is_file() else None


def clock_of(run: Mapping[str, Any], where: Path) -> datetime | None:
    """The time that the prompts of a run show, by its record; None where no chat template shows it, or it was not recorded yet.

    Raises InputError where what stands there is no time.
    """
    noted = next((clock for resolved in _resolutions(run) if (clock := resolved.get("clock")) is not None), None)
    return None if noted is None else parsed(noted, str(where))


def _resolutions(run: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What was resolved of the model and, in a comparison, of the derived model."""
    for record in (run, run.get("derived")):
        if isinstance(record, dict) and isinstance(record.get("resolved"), dict):
            yield record["resolved"]


def _note_clock(file: Path, old: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Write into a record that was made before clocks were noted which one its prompts show from now on."""
    changed = False
    for before, now in zip(_resolutions(old), _resolutions(new), strict=False):
        if "clock" not in before and now.get("clock") is not None:
            before["clock"], changed = now["clock"], True
    if changed:
        write_json(old, file)


def _recorded(file: Path) -> dict[str, Any]:
    """What a run.json holds. Raises InputError where it is not ours."""
    try:
        old = json.loads(file.read_text(encoding="utf-8"))
        known = all(isinstance(old[part], dict) or (part == "model_hashes" and old[part] is None) for part in _COMPARED)
        ours = old["schema"] == SCHEMA and known
    except (ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise InputError(f"{file}: not the record of a run of ours; give another --out")
    return dict(old)


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for part in _COMPARED:
        before, now = old.get(part) or {}, new.get(part) or {}
        for key in [*now, *(k for k in before if k not in now)]:
            if part == "settings" and (key in _MAY_CHANGE or (key == "engine" and _both_servers(before.get(key), now.get(key)))):
                continue
            if before.get(key) != now.get(key):
                what = f"--{key.replace('_', '-')}" if part == "settings" else f"{part.replace('_', ' ')} {key!r}"
                raise InputError(
                    f"{path}: holds a run with another {what} ({_short(before.get(key))}, now {_short(now.get(key))}); "
                    "give another --out, or the same settings to resume"
                )


def _both_servers(before: Any, now: Any) -> bool:
    """A server may have moved; from a server to another kind of engine is another run."""
    return is_url(str(before)) and is_url(str(now))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def file_hashes(folder: Path) -> dict[str, str]:
    """BLAKE3 of every config, tokenizer and weights file directly in a model folder."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt"))
    return {p.name: blake3(max_threads=blake3.AUTO).update_mmap(p).hexdigest() for p in files if p.is_file()}
