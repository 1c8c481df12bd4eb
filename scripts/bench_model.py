"""A model in memory, beside plain transformers on the same prompts: collecting activations, and writing replies.

Each way has a process of its own, which loads the model once; they take turns on the same prompts. Plain transformers gets its
best batch size, found first on a part of the prompts. Run by ``scripts/bench collect`` and ``scripts/bench generate``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SETS = {"collect": ("harmful", "harmless"), "generate": ("harmful", "harmless", "censorship", "censorship-control")}
SPLIT = {"collect": "train", "generate": "test"}
SEARCHED = 256  # prompts on which the batch sizes of plain transformers are tried
WARM = 8
OWN, FILE, SORTED = "abliterate", "transformers, file order", "transformers, sorted by length"
# What is to be reached: this program's prompts a second, as a multiple of another way's.
TARGETS = {"collect": {FILE: 1.5, SORTED: 1.1}, "generate": {FILE: 2.0}}
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


# --- in a process of its own: one model, asked again and again ---


class Asked:
    """One way's model, and the prompts."""

    def __init__(self, task: str, plain: bool, model: str, limit: int | None, tokens: int, positions: int, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging

        from abliterate.compute.whole.model import load_model
        from abliterate.model.chat.template import encode
        from abliterate.model.source import resolve_model
        from abliterate.prompts import load_set

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        torch.set_num_threads(threads)
        self.task, self.plain, self.tokens, self.positions = task, plain, tokens, positions
        path = resolve_model(model, None).path
        self.model = load_model(path)
        self.module: Any = self.model.module
        self.ends = self.model.ends
        if plain:
            self.module = AutoModelForCausalLM.from_pretrained(path, dtype=self.module.dtype, use_safetensors=True, trust_remote_code=False)
            self.module = self.module.to(self.model.device).eval()
            self.module.generation_config = GenerationConfig(pad_token_id=self.model.tokenizer.pad_token_id)
            self.model = replace(self.model, module=self.module)  # so that it is in memory once
        groups = [load_set(name).of(SPLIT[task], limit) for name in SETS[task]]
        self.prompts = [ids for group in groups for ids in encode(self.model.tokenizer, [p.text for p in group])]

    def run(self, most: int | None = None, batch_size: int | None = None, ordered: bool = False) -> dict[str, Any]:
        """Of the prompts at most so many, evenly taken: seconds of wall and of processor, prompts, peak memory, replies."""
        prompts = self.prompts[:: 1 if most is None else -(-len(self.prompts) // most)]
        _forget_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        made = self._plain(prompts, batch_size or 1, ordered) if self.plain else self._own(prompts)
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        return {**seconds, "prompts": len(prompts), "peak_bytes": _peak(), "replies": made if self.task == "generate" else None}

    def _own(self, prompts: Sequence[list[int]]) -> Any:
        from abliterate.compute.passes import Pass
        from abliterate.directions.collect import Group, collect

        if self.task == "collect":
            return collect(self.model, {"all": Group(prompts)}, self.positions)
        replies: dict[int, list[int]] = {}
        for _, indices, found in self.model.replies([Pass(prompts)], self.tokens):
            replies |= dict(zip(indices, found, strict=True))
        return [replies[i] for i in range(len(prompts))]

    def _plain(self, prompts: Sequence[list[int]], batch_size: int, ordered: bool) -> Any:
        import torch

        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i])) if ordered else range(len(prompts))
        made: list[Any] = []
        with torch.inference_mode():
            for start in range(0, len(prompts), batch_size):
                rows = [prompts[i] for i in list(order)[start : start + batch_size]]
                made += self._streams(rows) if self.task == "collect" else self._replies(rows)
        return made

    def _padded(self, rows: Sequence[list[int]]) -> dict[str, Any]:
        import torch

        width = max(map(len, rows))
        pad = int(self.model.tokenizer.pad_token_id)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        return {"input_ids": ids, "attention_mask": mask}

    def _streams(self, rows: Sequence[list[int]]) -> list[Any]:
        import torch

        states = self.module.base_model(**self._padded(rows), output_hidden_states=True, use_cache=False).hidden_states
        return list(torch.stack([state[:, -self.positions :].float().cpu() for state in states], dim=2))

    def _replies(self, rows: Sequence[list[int]]) -> list[list[int]]:
        from abliterate.compute.whole.model import up_to_end

        ends, inputs = self.ends, self._padded(rows)
        out = self.module.generate(
            **inputs, max_new_tokens=self.tokens, do_sample=False, eos_token_id=sorted(ends), pad_token_id=self.model.tokenizer.pad_token_id
        )
        return [up_to_end(row, ends) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux: the peak of the whole process is told
        return


def _peak() -> int:
    import torch

    from abliterate.runs.folder import peak_rss_bytes

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return peak_rss_bytes()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def serve(settings: dict[str, Any]) -> None:
    """Answer every line on stdin with one on stdout."""
    asked = Asked(**settings)
    for line in sys.stdin:
        print(json.dumps(asked.run(**json.loads(line))), flush=True)


class Worker:
    """A process with one way's model."""

    def __init__(self, settings: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, __file__, "_serve", json.dumps(settings)]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, **request: Any) -> dict[str, Any]:
        """What ``Asked.run`` gives there."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"bench: a process ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


# --- the measurement ---


@dataclass
class Figures:
    """What was measured of one way."""

    batch_size: int | None
    prompts: int = 0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    replies: list[list[int]] | None = None

    def add(self, found: dict[str, Any]) -> None:
        """One more turn."""
        self.wall.append(found["wall"])
        self.cpu.append(found["cpu"])
        self.prompts, self.replies = found["prompts"], found["replies"]
        self.peak_bytes = max(self.peak_bytes, found["peak_bytes"])

    def rate(self, clock: str) -> float:
        """Prompts a second, by the median turn."""
        return self.prompts / median(getattr(self, clock))


def measured(task: str, settings: dict[str, Any], sizes: Sequence[int], repeat: int, make: Any = Worker) -> dict[str, Any]:
    """All figures of a task, both ways in turns."""
    own, plain = (make({"task": task, "plain": way, **settings}) for way in (False, True))
    try:
        return _measured(task, own, plain, sizes, repeat)
    finally:
        own.close()
        plain.close()


def _measured(task: str, own: Any, plain: Any, sizes: Sequence[int], repeat: int) -> dict[str, Any]:
    ways: dict[str, tuple[Any, dict[str, Any]]] = {OWN: (own, {})}
    own.run(most=WARM)
    plain.run(most=WARM, batch_size=WARM)
    for way in TARGETS[task]:
        tried = {size: plain.run(most=SEARCHED, batch_size=size, ordered=way == SORTED) for size in sizes}
        best = min(tried, key=lambda size: float(tried[size]["cpu"]))
        say(f"{way}: " + ", ".join(f"{size} at once {f['prompts'] / f['cpu']:.2f}/s" for size, f in tried.items()))
        ways[way] = (plain, {"batch_size": best, "ordered": way == SORTED})
    figures = {way: Figures(request.get("batch_size")) for way, (_, request) in ways.items()}
    for turn in range(repeat):
        first = turn % len(ways)
        for way in [*ways][first:] + [*ways][:first]:
            worker, request = ways[way]
            figures[way].add(worker.run(**request))
            say(f"turn {turn + 1} of {repeat}: {way}: {figures[way].wall[-1]:.1f} s, of the processor {figures[way].cpu[-1]:.1f} s")
    return {"ways": {way: as_record(found) for way, found in figures.items()}, **compared(task, figures, plain, sizes)}


def compared(task: str, figures: dict[str, Figures], plain: Any, sizes: Sequence[int]) -> dict[str, Any]:
    """The targets with what was found; of replies also how many differ, and how many do between two batch sizes of transformers."""
    targets = [
        {"beside": way, "target": target, **{clock: figures[OWN].rate(clock) / figures[way].rate(clock) for clock in ("wall", "cpu")}}
        for way, target in TARGETS[task].items()
    ]
    if task != "generate":
        return {"targets": targets}
    best = figures[FILE].batch_size
    other = next((size for size in sizes if size != best), None)
    again = plain.run(batch_size=other)["replies"] if other else figures[FILE].replies
    return {
        "targets": targets,
        "differ": {
            "from transformers": differing(figures[OWN].replies, figures[FILE].replies),
            f"transformers at {other} from itself at {best}": differing(again, figures[FILE].replies),
        },
    }


def differing(one: Any, other: Any) -> int:
    """How many replies are not the same."""
    return sum(a != b for a, b in zip(one, other, strict=True))


def as_record(found: Figures) -> dict[str, Any]:
    """One way for the JSON file."""
    rates = {f"prompts_per_second_{clock}": found.rate(clock) for clock in ("wall", "cpu")}
    return {**{key: value for key, value in vars(found).items() if key != "replies"}, **rates}


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def show(task: str, document: dict[str, Any], args: argparse.Namespace) -> None:
    """Tables on stdout."""
    table = Table(title=f"{task}: medians of {args.repeat} (min–max), {document['prompts']} prompts, {args.threads} thread(s)")
    for column in ("way", "at once", "wall s", "processor s", "prompts/s", "peak MB"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for way, found in document["ways"].items():
        spreads = [f"{median(found[clock]):.1f} ({min(found[clock]):.1f}–{max(found[clock]):.1f})" for clock in ("wall", "cpu")]
        rate, peak = f"{found['prompts_per_second_cpu']:.2f}", f"{found['peak_bytes'] / 1e6:.0f}"
        table.add_row(way, str(found["batch_size"] or "auto"), *spreads, rate, peak)
    console.print(table)
    for target in document["targets"]:
        met = "met" if target["cpu"] >= target["target"] else "missed"
        console.print(
            f"{target['cpu']:.2f} × {target['beside']} by the processor's clock, {target['wall']:.2f} × by the wall's "
            f"(target {target['target']}: {met})"
        )
    for what, count in document.get("differ", {}).items():
        console.print(f"replies that differ {what}: {count} of {document['prompts']}")
    console.print(
        "prompts/s by the processor's clock: of a thread that is alone on a core it is the wall's, and neighbours don't count. Each way "
        "in a process of its own, loading not counted. Plain transformers at its best of "
        f"{', '.join(map(str, args.batch_sizes))} at once, found on at most {SEARCHED} of the prompts."
    )


def bench(args: argparse.Namespace) -> None:
    """One task, measured and shown."""
    settings = {
        "model": args.model,
        "limit": args.limit,
        "tokens": getattr(args, "tokens", 0),
        "positions": getattr(args, "positions", 1),
        "threads": args.threads,
    }
    found = measured(args.task, settings, args.batch_sizes, args.repeat)
    document = {"task": args.task, **settings, "prompts": found["ways"][OWN]["prompts"], "repeat": args.repeat, **found}
    show(args.task, document, args)
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n")


def numbers(text: str) -> list[int]:
    """``16,32`` as numbers."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return found


def add_to(commands: Any) -> None:
    """The subcommands ``collect`` and ``generate``."""
    helps = {"collect": "activations, against a plain forward pass", "generate": "replies, against transformers' generate"}
    for task, text in helps.items():
        command = commands.add_parser(task, help=text)
        command.add_argument("--model", default="smollm2-refuser", help="a folder, a Hub id or a short name (default %(default)s)")
        command.add_argument("--limit", type=int, metavar="N", help=f"the first N {SPLIT[task]} prompts of each set (default all)")
        command.add_argument("--repeat", type=int, default=5, help="times each is measured (default %(default)s)")
        command.add_argument("--threads", type=int, default=1, help="of the processor (default %(default)s)")
        sizes = [8, 16, 32, 64] if task == "collect" else [16, 32, 64, 128]
        command.add_argument("--batch-sizes", type=numbers, default=sizes, metavar="N,...", help="tried for plain transformers")
        if task == "collect":
            command.add_argument("--positions", type=int, default=5, help="last positions that are kept (default %(default)s)")
        else:
            command.add_argument("--tokens", type=int, default=64, help="of a reply at most (default %(default)s)")
        command.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
        command.set_defaults(run=bench, task=task)


if __name__ == "__main__":
    assert sys.argv[1] == "_serve", "run scripts/bench"
    serve(json.loads(sys.argv[2]))
