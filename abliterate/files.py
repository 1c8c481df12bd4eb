"""Write files that are complete or absent, typed JSON records, where output may go, and the user's cache."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import platformdirs
import psutil
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, Strict, ValidationError, WithJsonSchema, model_serializer
from pydantic.annotated_handlers import GetCoreSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from abliterate.errors import CheckError, InputError

CACHE = "ABLITERATE_CACHE"
OWN_FOLDER, OWN_FILE = 0o700, 0o600  # only the owner may read or write it
_EVERYBODY_READS = 0o644
_ROOT = 0

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)
Json = dict[str, Any]  # an object of JSON whose keys others choose: a foreign model's config, a server's answer, the settings of a command
Number = Annotated[int | float, WithJsonSchema({"type": "number"})]  # a whole number stays one when it is written again
Count = Annotated[int, Field(ge=0)]
Share = Annotated[int | float, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
Several = Annotated[tuple[T, ...], Strict(False)]
Interval = Annotated[tuple[Number, Number], Strict(False)]  # lower and upper end


class _Absent:
    """Marks a key that may be absent, and that isn't null where it stands."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(source)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema["schema"] if schema["type"] == "nullable" else schema)


May = Annotated[T | None, _Absent()]  # None where the key is absent; never written as null


class Record(BaseModel):
    """A JSON object that this program writes: frozen, and other keys or types are errors.

    A key with a default may be absent; it is written only if it was given. ``May[T]``: a key that is never null.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, protected_namespaces=(), populate_by_name=True, ser_json_inf_nan="constants"
    )
    _never_null: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **given: Any) -> None:
        super().__pydantic_init_subclass__(**given)
        absent = (name for name, field in cls.model_fields.items() if any(isinstance(each, _Absent) for each in field.metadata))
        cls._never_null = frozenset(absent)

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: Callable[[Any], Json]) -> Json:
        return {key: value for key, value in handler(self).items() if value is not None or key not in self._never_null}

    def document(self) -> Json:
        """The record as plain JSON values, in the order in which it is written."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @classmethod
    def read(cls: type[R], path: Path) -> R:  # Self is not known to what checks the tests' types
        """Read a file of this kind. Raises InputError, in one line, if it isn't one."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise InputError(f"{path}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a record, with the path of its key."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg'].lower()}"


def check_new(path: Path, flag: str = "--out") -> None:
    """Raise InputError if the path exists."""
    if path.exists():
        raise InputError(f"{path}: already there; give another {flag} (nothing is overwritten)")


def check_place(path: Path) -> None:
    """Raise InputError if the path can't be a run folder: it is a file, or a folder with other content."""
    if not path.exists() or (path / "run.json").is_file():
        return
    if not path.is_dir() or any(p.name != ".run.json.partial" for p in path.iterdir()):
        raise InputError(f"{path}: not empty and not a run folder; give another --out")


def check_destination(out: Path, source: Path) -> None:
    """Raise InputError if ``out`` is a link, the current folder or not empty, lies inside the source folder, or contains it."""
    if out.is_symlink() or out.resolve() == Path.cwd():
        raise InputError(f"{out}: is a link or the current folder; give the name of a new folder")
    above = next((p for p in out.absolute().parents if p.exists()), None)
    if above is not None and not above.is_dir():
        raise InputError(f"{above}: is a file, so {out} can't be created; give another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already there and not empty; give another --out (nothing is overwritten)")
    real, base = out.resolve(), source.resolve()
    if real == base or base in real.parents:
        raise InputError(f"{out}: lies inside the model's folder {source}; give an --out outside it")
    if real in base.parents:
        raise InputError(f"{out}: contains the model's folder {source}; give another --out")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to. At the end of the block the file is flushed to disk and renamed to ``path``. If the block fails,
    the temporary file is removed and ``path`` is untouched.

    Everybody may read the file, even if the library that writes it (safetensors) would allow only its owner.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # left by a killed process, or a link in a stranger's folder
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.chmod(_EVERYBODY_READS)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a hidden folder beside ``path``. At the end of the block its content is flushed to disk and it is renamed to ``path``. If the
    block fails, the hidden folder is removed. First removes what killed processes left of the same folder."""
    remove_stale(path)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-{os.getpid()}-", dir=path.parent))
    try:
        yield partial
        for inner in sorted(partial.rglob("*")):
            _sync(inner)
        _sync(partial)
        partial.chmod(0o755)
        partial.replace(path)
        try:
            _sync(path.parent)
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_stale(path: Path) -> None:
    """Remove half-written copies of a folder that killed processes left; those of running processes stay."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        owner = stale.name.rpartition(".partial-")[2].partition("-")[0]
        if not owner.isdigit() or int(owner) == os.getpid() or not psutil.pid_exists(int(owner)):
            shutil.rmtree(stale, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems can't sync a folder
            raise
    finally:
        os.close(descriptor)


def write_whole(content: bytes, path: Path) -> None:
    """Write a file that is complete or absent, even after a crash of the machine."""
    with whole_file(path) as partial, partial.open("xb") as file:
        file.write(content)


def write_text(text: str, path: Path) -> None:
    """Write a text file that is complete or absent."""
    with whole_file(path) as partial, partial.open("x", encoding="utf-8", errors="replace", newline="") as file:
        file.write(text)


def write_json(document: Json | Record, path: Path) -> None:
    """Write a JSON file that is complete or absent. Raises CheckError for a number that is not finite, which JSON can't hold."""
    try:
        document = document.document() if isinstance(document, Record) else document
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise CheckError(f"{path}: a figure is not finite; the edited model's outputs are broken") from None
    write_text(text + "\n", path)


def read_json(path: Path) -> Json:
    """Read a file that ``write_json`` wrote."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def no_link(path: str, flags: int) -> int:
    """An opener (see ``open``) for a file that is written in place. Raises InputError for a link, which would write to another file."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise InputError(f"{path}: is a link, and writing to it would change another file; remove it") from None
        raise


def cache_folder() -> Path:
    """$ABLITERATE_CACHE, or the platform's user cache: a folder that only the user can read and write.

    It is created if it is missing, and closed to other users if it belongs to the user. A folder of root is accepted if only root can
    write to it. Raises InputError for a link, another user's folder, one that many users share, or one that can't be created.
    """
    path = Path(os.environ.get(CACHE) or platformdirs.user_cache_path("abliterate"))
    if path.is_symlink():
        raise InputError(f"{path}: the cache is a link, which others could redirect; set {CACHE} to the folder itself")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=OWN_FOLDER, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: can't be created ({error.strerror or error}); set {CACHE} to a folder that you can write to") from None
    own, mode = found.st_uid == os.geteuid(), stat.S_IMODE(found.st_mode)
    if not own and found.st_uid != _ROOT:
        raise InputError(f"{path}: the cache belongs to another user, who could change its content; set {CACHE} to a folder of yours")
    if mode & stat.S_ISVTX or (not own and mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise InputError(f"{path}: many users may write there, so it can't be the cache; set {CACHE} to a folder of yours")
    if own and mode != OWN_FOLDER:
        path.chmod(OWN_FOLDER)
    return path
