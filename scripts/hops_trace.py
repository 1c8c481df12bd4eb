"""The tracer of ``scripts/hops``: which functions of ours a thing goes through. What counts as a hop: see ``hops.py``."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

import abliterate
from abliterate.files import Record

PACKAGE = Path(abliterate.__file__).parent
DEPTH, OBJECTS = 10, 3_000  # how deep, and how far, an object is searched for the thing that is followed; near things come first
_PLAIN = frozenset({int, float, bool, type(None), complex})
_LEAVES = (str, bytes, memoryview, Tensor, Path)
_RETURNS = frozenset({"<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>"})  # parts of the function around them


class Search:
    """Looks for the thing that ``is_it`` knows in objects: in lists, mappings, partials, records and objects of ours. What it found in a
    frozen record it remembers."""

    def __init__(self, is_it: Callable[[Any], bool]) -> None:
        self._is_it = is_it
        self._known: dict[int, tuple[Any, bool]] = {}

    def finds(self, value: Any) -> bool:
        """Whether a value is the thing, or holds it."""
        if type(value) in _PLAIN:
            return False
        return self._in_record(value) if _is_frozen(type(value)) else self._scanned(value)

    def _scanned(self, value: Any) -> bool:
        todo, seen, left = deque([(value, 0)]), set[int](), OBJECTS
        while todo and left:
            each, depth = todo.popleft()
            if id(each) in seen:
                continue
            seen.add(id(each))
            left -= 1
            if isinstance(each, _LEAVES):
                if self._is_it(each):
                    return True
            elif each is not value and _is_frozen(type(each)):
                if self._in_record(each):
                    return True
            elif depth < DEPTH:
                todo += [(inner, depth + 1) for inner in _inner(each) if type(inner) not in _PLAIN]
        return False

    def _in_record(self, record: Any) -> bool:
        if id(record) not in self._known:
            self._known[id(record)] = record, False  # for one that holds itself
            self._known[id(record)] = record, self._scanned(record)
        return self._known[id(record)][1]


@cache
def _is_frozen(kind: type) -> bool:
    parameters = getattr(kind, "__dataclass_params__", None)
    return kind.__module__.startswith("abliterate") and (issubclass(kind, Record) or bool(parameters and parameters.frozen))


@cache
def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("abliterate") and not issubclass(kind, type | torch.nn.Module)


def _inner(value: Any) -> Any:
    if isinstance(value, dict):
        return [*value.values(), *value] if len(value) <= OBJECTS else ()
    if isinstance(value, list | tuple | set | frozenset):
        return value if len(value) <= OBJECTS else ()
    if isinstance(value, partial):
        return [*value.args, *value.keywords.values()]
    return list(getattr(value, "__dict__", {}).values()) if _is_ours(type(value)) else ()


@dataclass
class Activation:
    """One call of a function of ours, or the whole life of a generator of ours.

    ``given``: its arguments, each with whether it held the thing on entry, and a tensor's version then. ``out``: whether the thing went
    out of it: by what it returned or yielded, by an object that it was given, or by a file that a function on the way read. ``source``:
    the call that had been given the thing and the file that this one read. ``writes``: it wrote it to where the way ends.
    """

    code: CodeType
    given: list[tuple[Any, bool, int]]
    inner: list[Activation] = field(default_factory=list)
    out: bool = False
    source: Activation | None = None
    writes: bool = False

    @property
    def holds(self) -> bool:
        return any(held for _, held, _ in self.given)

    @property
    def leads_to_the_end(self) -> bool:
        return self.holds and (self.writes or any(each.leads_to_the_end for each in self.inner))


class Tracer:
    """Records the calls of ours during ``following``, with whether the thing that ``is_it`` knows goes in and out of each.

    ``begins``: the kind of record with whose first appearance the way begins; None: at once. A tensor that a function changes in place
    while it holds the thing carries it from then on.
    """

    def __init__(self, is_it: Callable[[Any], bool], begins: type | None = None) -> None:
        self._search, self._begins = Search(lambda each: is_it(each) or self._carries(each)), begins
        self._begun = begins is None
        self._main = threading.get_ident()
        self._stacks: dict[int, list[Activation]] = {}
        self._generators: dict[FrameType, Activation] = {}
        self._carriers: list[tuple[int, int, Tensor]] = []
        self._files: dict[Path, Activation] = {}
        self._roots: list[Activation] = []

    @contextmanager
    def following(self) -> Iterator[None]:
        """Trace this thread and those that it starts."""
        threading.setprofile(self._heard)
        sys.setprofile(self._heard)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]

    def writes(self) -> None:
        """Called when something is written to where the way ends: the innermost function did it."""
        stack = self._stacks.get(threading.get_ident())
        if stack and stack[-1].holds:
            stack[-1].writes = True

    def hops(self) -> list[str]:
        """The functions on the way, in the order in which they were entered first."""
        way = list(self._on_the_way())
        while files := [each.source for each in way if each.source and not each.source.out]:
            for each in files:
                each.out = True
            way = list(self._on_the_way())
        return list(dict.fromkeys(name for each in way if (name := hop_of(each.code)) is not None))

    def _on_the_way(self) -> Iterator[Activation]:
        todo = self._roots[::-1]
        while todo:
            each = todo.pop()
            yield each
            todo += [inner for inner in reversed(each.inner) if inner.out or inner.leads_to_the_end]

    def _heard(self, frame: FrameType, event: str, result: Any) -> None:
        if event not in ("call", "return") or not _is_of_ours(frame.f_code):
            return
        stack = self._stacks.setdefault(threading.get_ident(), [])
        if event == "call":
            stack.append(self._entered(frame, stack))
        elif stack and stack[-1].code is frame.f_code:
            self._left(stack.pop(), result)

    def _entered(self, frame: FrameType, stack: list[Activation]) -> Activation:
        if frame in self._generators:
            return self._generators[frame]
        code = frame.f_code
        count = code.co_argcount + code.co_kwonlyargcount
        arguments = [frame.f_locals[name] for name in code.co_varnames[:count] if name in frame.f_locals]
        self._begun = self._begun or any(isinstance(each, self._begins or ()) for each in arguments)
        entered = Activation(code, [(each, self._begun and self._search.finds(each), _version(each)) for each in arguments])
        above = stack or self._stacks.get(self._main)  # a thread's first function was called by where the main thread stands
        (above[-1].inner if above else self._roots).append(entered)
        if code.co_flags & inspect.CO_GENERATOR:
            self._generators[frame] = entered
        return entered

    def _left(self, left: Activation, result: Any) -> None:
        if not self._begun:
            return
        given, held = [value for value, *_ in left.given], left.holds
        left.out |= self._search.finds(result)
        for value, before, version in left.given:
            if isinstance(value, Tensor) and held and _version(value) != version:
                self._carriers.append((value.untyped_storage().data_ptr(), value.untyped_storage().nbytes(), value))
            if not before and not isinstance(value, (str, Path)) and not _is_frozen(type(value)):
                left.out |= self._search.finds(value)
        for path in (value for value in given if isinstance(value, Path)):
            if held:
                self._files[path] = left
            elif left.out:
                left.source = self._files.get(path)

    def _carries(self, value: Any) -> bool:
        if not self._carriers or not isinstance(value, Tensor | memoryview):
            return False
        try:
            own = torch.frombuffer(value, dtype=torch.uint8) if isinstance(value, memoryview) else value
            at = own.data_ptr()
        except (RuntimeError, ValueError):
            return False
        return any(start <= at < start + size for start, size, _ in self._carriers)


def _version(value: Any) -> int:
    try:
        return value._version if isinstance(value, Tensor) else 0
    except RuntimeError:  # tensors of inference mode count no versions
        return 0


@cache
def _is_of_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(str(PACKAGE)) and code.co_filename.endswith(".py")


@cache
def hop_of(code: CodeType) -> str | None:
    """``room/module.py: function``; None for what is not counted: parts of a function, properties, and dunder methods but ``__init__``."""
    name = code.co_qualname.replace(".<locals>", "")
    last = name.rpartition(".")[2]
    if last in _RETURNS or (last.startswith("__") and last != "__init__"):
        return None
    file = Path(code.co_filename).relative_to(PACKAGE)
    owner: Any = importlib.import_module(".".join(["abliterate", *file.with_suffix("").parts]))
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part, None)
    if isinstance(inspect.getattr_static(owner, last, None), property):
        return None
    return f"{file}: {name.removesuffix('.__init__')}"
