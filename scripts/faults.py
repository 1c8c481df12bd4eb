"""Two trials of the promise that an edited checkpoint is whole under its name or not there, and its source never touched.

``kills`` forks an edit of a small sharded checkpoint again and again and kills each at a random instant. ``fuzz`` damages small
checkpoints in every way that a stranger's file can be damaged: an edit then either ends well, with a checkpoint that verifies
against the damaged base, or is refused with one line; never another exception, never a file where none belongs. Where a folder's parts
say different things of the model (``fault_folders``), it is measured too, and transformers alone says what is right (``fault_judge``).

Run by ``scripts/faults``; a part of both is in the test suite.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from fault_bases import BASES, PLAIN, SMALL, save_base
from fault_bytes import DAMAGES, DECOY
from fault_folders import WHOLE
from fault_judge import BrokenPromiseError, check_edited, measured, require
from transformers import LlamaConfig

from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.verify import verify
from abliterate.errors import CheckError, InputError
from abliterate.model.edit import edit_from_direction
from abliterate.model.folder import open_folder

Say = Callable[[str], None]


@dataclass
class Tally:
    """How the tries of a trial ended, and what went wrong."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def edit(model: Path, out: Path, **options: Any) -> None:
    """An edit along one random direction."""
    folder = open_folder(model)
    edit = edit_from_direction(direction(folder.d_model), folder.layers, tied=folder.tied, **options)
    edit_checkpoint(folder, edit, out, "base", lambda proof: "card\n")


def direction(width: int) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(1))


@contextmanager
def own_cache(place: Path) -> Iterator[None]:
    """Self-checks are kept in ``place``, not in the user's cache."""
    before = os.environ.get("ABLITERATE_CACHE")
    os.environ["ABLITERATE_CACHE"] = str(place)
    try:
        yield
    finally:
        os.environ.pop("ABLITERATE_CACHE")
        if before is not None:
            os.environ["ABLITERATE_CACHE"] = before


def contents(place: Path) -> dict[str, str]:
    """Every file below ``place`` with its hash; links with where they point, folders as such."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(place))] = f"-> {path.readlink()}"
        else:
            found[str(path.relative_to(place))] = blake3(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


# --- kills ---


def kills(n: int, seed: int, place: Path, say: Say = print) -> Tally:
    """Kill ``n`` edits, each at an instant drawn from 0 to 1.2 times what one takes."""
    rng, tally = random.Random(seed), Tally()
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6} | SMALL
    (place / "kills").mkdir(parents=True)
    with own_cache(place / "cache"):
        model = save_base(place / "kills" / "model", LlamaConfig(**sizes, tie_word_embeddings=False), "2MB")
        out, before = place / "kills" / "out", contents(model)
        _whole_edit(model, out)
        _check_whole(model, out)
        took = statistics.median(_whole_edit(model, out) for _ in range(7))
        say(f"an edit takes {took * 1000:.0f} ms; {n} kills")
        shutil.rmtree(out)
        stale: set[Path] = set()
        for number in range(n):
            try:
                how = _killed(model, out, rng.uniform(0, 1.2 * took))
                left = set(out.parent.glob(".out.partial-*"))
                tally.counts["kill", how] += 1
                tally.counts["stale folder", "left"] += len(left - stale)
                stale |= left
                require(len(left) <= 1, f"{len(left)} stale folders lie beside the checkpoint")
                require(contents(model) == before, "the source changed")
            except BrokenPromiseError as error:
                tally.broken.append(f"kill {number}: {error}")
        _whole_edit(model, out)
        _check_whole(model, out)
        shutil.rmtree(out)
        if left := [path for path in out.parent.iterdir() if path != model]:
            tally.broken.append(f"the last run did not sweep {left[0].name}")
        tally.counts["stale folder", "swept by a later run"] = len(stale) - sum(path.exists() for path in stale)
    return tally


def _whole_edit(model: Path, out: Path) -> float:
    """Seconds of an edit that is let be; its checkpoint stays until the next call."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    _, status = os.waitpid(_forked(model, out), 0)
    took = time.monotonic() - started
    if status:
        raise SystemExit("an edit that nobody killed failed")
    return took


def _killed(model: Path, out: Path, after: float) -> str:
    """Start an edit, kill it, and look at what stands under its name."""
    child = _forked(model, out)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    require(os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the edit failed by itself")
    if not out.exists():
        require(os.WIFSIGNALED(status), "the edit ended well, but nothing stands under its name")
        return "nothing under the name"
    _check_whole(model, out)
    shutil.rmtree(out)
    return "whole, killed after it got its name" if os.WIFSIGNALED(status) else "whole, had ended before the kill"


def _forked(model: Path, out: Path) -> int:
    """The process id of a child that edits and ends."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)  # the parent's threads did not come along
        edit(model, out)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _check_whole(model: Path, out: Path) -> None:
    try:
        verify(open_folder(out), open_folder(model))
    except (InputError, CheckError) as error:
        raise BrokenPromiseError(f"what stands under the name does not verify: {error}") from None


# --- fuzz ---


EDITED = "edited and verified"


def fuzz(n: int, seed: int, place: Path, say: Say = print, only: int | None = None, kinds: Sequence[str] = ()) -> Tally:
    """``n`` damaged checkpoints, of some ``kinds`` or of all; ``only`` takes the one of that number."""
    tally = Tally()
    with own_cache(place / "cache"):
        wanted = PLAIN if kinds and WHOLE.issuperset(kinds) else BASES
        bases = {name: BASES[name](place / "bases" / name) for name in wanted}
        for name, base in bases.items():  # the self-checks, once
            edit(base, place / "first" / name)
        for number in range(n) if only is None else (only,):
            rng = random.Random(f"{seed}:{number}")
            kind = rng.choice(list(kinds or DAMAGES))
            try:
                tally.counts[kind, _fuzzed(bases, kind, rng, place / "case")] += 1
            except BrokenPromiseError as error:
                tally.counts[kind, "BROKEN"] += 1
                tally.broken.append(f"case {number} ({kind}): {error}")
            if number % 500 == 499:
                say(f"{number + 1} of {n}")
    return tally


def _fuzzed(bases: dict[str, Path], kind: str, rng: random.Random, case: Path) -> str:
    """One damaged checkpoint: how its edit ended, and how measuring it did. Raises BrokenPromiseError."""
    shutil.rmtree(case, ignore_errors=True)
    whole = kind in WHOLE
    family = rng.choice(["llama", "llama", *(PLAIN if whole else bases)])
    model, out = case / "models" / family, case / "out"
    shutil.copytree(bases[family], model)
    (case / "outside").mkdir()
    shutil.copy(min(model.glob("*.safetensors")), case / "outside" / DECOY)
    DAMAGES[kind](model, rng)
    options = rng.choice(({}, {"policy": "skip"}, {"policy": "untie"}, {"strength": 0.5}, {"keep_norms": True}))
    with _named(family):
        end = _edited(model, out, case, options)
        if not whole:
            return end
        if end == EDITED:
            check_edited(model, out, direction(open_folder(model).d_model), options)
        return f"{end}, {measured(model, kind)}"


@contextmanager
def _named(family: str) -> Iterator[None]:
    """What breaks the promise, by whatever exception, as a BrokenPromiseError that names the family and the place."""
    try:
        yield
    except BrokenPromiseError as error:
        raise BrokenPromiseError(f"{family}: {error}") from None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        raise BrokenPromiseError(f"{family}: {type(error).__name__}: {str(error)[:200]} ({where})") from None


def _edited(model: Path, out: Path, case: Path, options: dict[str, Any]) -> str:
    """How an edit ended."""
    before = contents(case)
    try:
        edit(model, out, **options)
    except (InputError, CheckError) as error:
        require(len(str(error).splitlines()) == 1, f"a message of several lines: {str(error)!r}")
        require(len(str(error)) < 1000, f"a message of {len(str(error))} characters")
        require(contents(case) == before, f"refused ({error}), but files changed: {_difference(before, contents(case))}")
        return "refused" if isinstance(error, InputError) else "failed its check"
    after = contents(case)
    elsewhere = {name: hashed for name, hashed in after.items() if name != "out" and not name.startswith("out/")}
    require(elsewhere == before, f"edited, but other files changed: {_difference(before, elsewhere)}")
    try:
        verify(open_folder(out), open_folder(model))
    except Exception as error:
        raise BrokenPromiseError(f"edited {options}, but verify: {type(error).__name__}: {str(error)[:200]}") from None
    return EDITED


def _difference(before: dict[str, str], after: dict[str, str]) -> str:
    return ", ".join(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))[:5])


def show(tally: Tally) -> int:
    """Print the counts and what broke; the exit code."""
    for kind in sorted({kind for kind, _ in tally.counts}):
        ends = ", ".join(f"{count} {end}" for (k, end), count in sorted(tally.counts.items()) if k == kind)
        print(f"{kind}: {ends}")
    totals: Counter[str] = Counter()
    for (_, end), count in tally.counts.items():
        totals[end] += count
    print("all: " + ", ".join(f"{count} {end}" for end, count in sorted(totals.items())))
    for line in tally.broken[:50]:
        print(f"BROKEN: {line}")
    print(f"{len(tally.broken)} promises broken")
    return 1 if tally.broken else 0


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trials = parser.add_subparsers(dest="trial", required=True)
    for name, n, text in (("kills", 1000, "kill edits at random instants"), ("fuzz", 10_000, "edit damaged checkpoints")):
        trial = trials.add_parser(name, help=text)
        trial.add_argument("--n", type=int, default=n, help="how many (default %(default)s)")
        trial.add_argument("--seed", type=int, default=0)
        if name == "fuzz":
            trial.add_argument("--only", type=int, metavar="CASE", help="the case of this number alone")
            trial.add_argument("--kinds", nargs="+", default=(), choices=list(DAMAGES), metavar="KIND", help="some kinds of damage alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="abliterate-faults-") as place:
        if args.trial == "kills":
            return show(kills(args.n, args.seed, Path(place)))
        return show(fuzz(args.n, args.seed, Path(place), only=args.only, kinds=args.kinds))


if __name__ == "__main__":
    sys.exit(main())
