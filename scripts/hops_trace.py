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
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

import abliterate

PACKAGE = Path(abliterate.__file__).parent
DEPTH, OBJECTS = 10, 3_000  # how deep, and how far, an object is searched for the thing that is followed; near things come first
_OURS = str(PACKAGE)
_PLAIN = (int, float, bool, type(None), complex)
_RETURNS = frozenset({"<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>"})  # parts of the function around them


def holds(value: Any, is_it: Callable[[Any], bool]) -> bool:
    """Whether a value is the thing that is followed, or holds it: in a list, a mapping, a record, a partial, or an object of ours."""
    todo, seen, left = deque([(value, 0)]), set[int](), OBJECTS
    while todo and left:
        each, depth = todo.popleft()
        if isinstance(each, _PLAIN) or id(each) in seen:
            continue
        seen.add(id(each))
        left -= 1
        if isinstance(each, str | bytes | memoryview | Tensor | Path):
            if is_it(each):
                return True
        elif depth < DEPTH:
            todo += [(inner, depth + 1) for inner in _inner(each)]
    return False


def _inner(value: Any) -> Any:
    if isinstance(value, dict):
        value = [*value.values(), *value]
    if isinstance(value, list | tuple | set | frozenset):
        return [each for each in value if not isinstance(each, _PLAIN)] if len(value) <= OBJECTS else ()
    if isinstance(value, partial):
        return [*value.args, *value.keywords.values()]
    if type(value).__module__.startswith("abliterate") and not isinstance(value, type | torch.nn.Module):
        return list(getattr(value, "__dict__", {}).values())
    return ()


@dataclass
class Activation:
    """One call of a function of ours, or the whole life of a generator of ours. ``given``: its arguments, each with whether it held the thing
    on entry, and a tensor's version then. ``out``: whether the thing went out of it: by what it returned or yielded, by an object that it was
    given, or by a file that was read later. ``writes``: it wrote it to where the way ends."""

    code: CodeType
    given: list[tuple[Any, bool, int]]
    inner: list[Activation] = field(default_factory=list)
    out: bool = False
    writes: bool = False

    @property
    def holds(self) -> bool:
        return any(held for _, held, _ in self.given)

    @property
    def leads_to_the_end(self) -> bool:
        return self.holds and (self.writes or any(each.leads_to_the_end for each in self.inner))


class Tracer:
    """Records the calls of ours during ``following``, with whether the thing that ``is_it`` knows goes in and out of each.

    ``begins``: the kind of record with whose first appearance the way begins; None: at once. A tensor that a function changes in place while
    it holds the thing carries it from then on.
    """

    def __init__(self, is_it: Callable[[Any], bool], begins: type | None = None) -> None:
        self._is_it, self._begins = is_it, begins
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
        found: dict[str, None] = {}

        def visit(each: Activation) -> None:
            if (name := hop_of(each.code)) is not None:
                found.setdefault(name)
            for inner in each.inner:
                if inner.out or inner.leads_to_the_end:
                    visit(inner)

        for root in self._roots:
            visit(root)
        return list(found)

    def _heard(self, frame: FrameType, event: str, result: Any) -> None:
        file = frame.f_code.co_filename
        if event not in ("call", "return") or not file.startswith(_OURS) or not file.endswith(".py"):
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
        entered = Activation(code, [(each, self._begun and self._holds(each), _version(each)) for each in arguments])
        above = stack or self._stacks.get(self._main)  # a thread's first function was called by where the main thread stands
        (above[-1].inner if above else self._roots).append(entered)
        if code.co_flags & inspect.CO_GENERATOR:
            self._generators[frame] = entered
        return entered

    def _left(self, left: Activation, result: Any) -> None:
        if not self._begun:
            return
        given, held = [value for value, *_ in left.given], left.holds
        left.out |= self._holds(result)
        for value, before, version in left.given:
            if isinstance(value, Tensor) and held and _version(value) != version:
                self._carriers.append((value.untyped_storage().data_ptr(), value.untyped_storage().nbytes(), value))
            if not before and not isinstance(value, (*_PLAIN, str, Path)):
                left.out |= self._holds(value)
        for path in (value for value in given if isinstance(value, Path)):
            if held:
                self._files[path] = left
            elif left.out and path in self._files:
                self._files[path].out = True

    def _holds(self, value: Any) -> bool:
        return holds(value, lambda each: self._is_it(each) or self._carries(each))

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
