"""A whole run beside what a notebook with plain transformers does of it: activations, direction, choice, edit, replies before and after.

The plain way loads the model, takes the difference of means of the last token's hidden states, tries the directions of a few layers
by generating replies to val prompts under a hook that removes them, orthogonalises the weights in memory, saves the checkpoint, and
generates replies of both models to the test prompts, in batches of one size in file order. It proves nothing, measures no drift and
has no report. Both take turns on the same prompts; each turn is a process of its own, loading included. Run by ``scripts/bench run``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
TARGET, BASELINE = "harmful", "harmless"
BATCH = 32
OWN, PLAIN = "abliterate run", "plain transformers"
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def plain(settings: dict[str, Any]) -> None:
    """The plain way, in this process."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from abliterate.model.source import resolve_model
    from abliterate.outcomes.records import WITHHELD
    from abliterate.outcomes.verdict import judge
    from abliterate.prompts import load_set

    torch.set_num_threads(settings["threads"])
    path = resolve_model(settings["model"], None).path
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", trust_remote_code=False)
    module: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False).eval()
    limit, tokens = settings["limit"], settings["tokens"]

    def inputs(texts: list[str]) -> Any:
        chats = [[{"role": "user", "content": text}] for text in texts]
        rendered = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        return tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)

    def asked(name: str, split: Any, most: int) -> list[str]:
        return [p.text for p in load_set(name).of(split, most)]

    def replies(texts: list[str], longest: int) -> list[str]:
        made: list[str] = []
        for start in range(0, len(texts), BATCH):
            batch = inputs(texts[start : start + BATCH])
            out = module.generate(**batch, max_new_tokens=longest, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            made += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return made

    def mean(name: str) -> Any:
        texts, total = asked(name, "train", limit), 0.0
        for start in range(0, len(texts), BATCH):
            states = module(**inputs(texts[start : start + BATCH]), output_hidden_states=True).hidden_states
            total = total + torch.stack([state[:, -1].double().sum(0) for state in states])
        return total / len(texts)

    with torch.inference_mode():
        difference = mean(TARGET) - mean(BASELINE)
        layers = module.model.layers
        places = [round((i + 1) * 0.8 * len(layers) / (settings["candidates"] + 1)) for i in range(settings["candidates"])]
        val, kept = asked(TARGET, "val", max(4, limit // 3)), {}
        for place in places:
            r = (difference[place + 1] / difference[place + 1].norm()).float()
            hooks = [
                part.register_forward_hook(lambda _, __, out, r=r: _without(out, r))
                for layer in layers
                for part in (layer.self_attn.o_proj, layer.mlp.down_proj)
            ]
            kept[place] = sum(judge(text).outcome in WITHHELD for text in replies(val, tokens))
            for hook in hooks:
                hook.remove()
        best = min(kept, key=lambda place: kept[place])
        test = asked(TARGET, "test", limit) + asked(BASELINE, "test", limit)
        before = replies(test, tokens)
        r = (difference[best + 1] / difference[best + 1].norm()).float()
        for layer in layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight -= torch.outer(r, r @ weight)
        module.to(torch.bfloat16).save_pretrained(Path(settings["out"]) / "checkpoint")
        module.float()
        after = replies(test, tokens)
    found = [sum(judge(text).outcome in WITHHELD for text in part[: len(test) // 2]) for part in (before, after)]
    (Path(settings["out"]) / "withheld.json").write_text(json.dumps(found))


def _without(out: Any, r: Any) -> Any:
    return out - (out @ r)[..., None] * r


def command(way: str, settings: dict[str, Any]) -> list[str]:
    """What a turn runs."""
    if way == PLAIN:
        return [sys.executable, __file__, "_plain", json.dumps(settings)]
    flags = {"model": settings["model"], "target": TARGET, "limit": settings["limit"], "candidates": settings["candidates"]}
    flags |= {"max-new-tokens": settings["tokens"], "out": settings["out"]}
    return [sys.executable, "-m", "abliterate", "run", *(part for key, value in flags.items() for part in (f"--{key}", str(value)))]


def turn(way: str, settings: dict[str, Any]) -> tuple[float, float, int]:
    """Seconds of wall and of processor, and the peak resident memory in bytes, of one whole process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": str(settings["threads"])}
    started = time.perf_counter()
    process = subprocess.Popen(command(way, settings), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"bench: {way} ended with {os.waitstatus_to_exitcode(status)}: {said.strip().splitlines()[-1:]}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def withheld(way: str, out: Path) -> list[int]:
    """How many test prompts of the target are withheld before and after."""
    if way == PLAIN:
        found: list[int] = json.loads((out / "withheld.json").read_text())
        return found
    entry = json.loads((out / "report.json").read_text(encoding="utf-8"))["sets"][TARGET]
    return [entry[side]["withheld"]["k"] for side in ("base", "edited")]


def bench(args: argparse.Namespace) -> None:
    """Both ways in turns, shown."""
    settings = {key: getattr(args, key) for key in ("model", "limit", "tokens", "candidates", "threads")}
    turns: dict[str, list[tuple[float, float, int]]] = {OWN: [], PLAIN: []}
    outcome: dict[str, list[int]] = {}
    for number in range(args.repeat):
        for way in (OWN, PLAIN) if number % 2 == 0 else (PLAIN, OWN):
            with tempfile.TemporaryDirectory(prefix="abliterate-bench-", dir=args.work) as scratch:
                out = Path(scratch) / "run"
                out.mkdir()
                turns[way].append(turn(way, {**settings, "out": str(out)}))
                outcome[way] = withheld(way, out)
            print(f"turn {number + 1} of {args.repeat}: {way}: {turns[way][-1][0]:.1f} s", file=sys.stderr, flush=True)
    table = Table(
        title=f"run: medians of {args.repeat} (min–max), {args.limit} prompts a set, {args.tokens} tokens, {args.threads} thread(s)"
    )
    for column in ("way", "wall s", "processor s", "peak MB", "withheld before → after"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for way, found in turns.items():
        spreads = [f"{median(part):.1f} ({min(part):.1f}–{max(part):.1f})" for part in list(zip(*found, strict=True))[:2]]
        table.add_row(way, *spreads, f"{max(t[2] for t in found) / 1e6:.0f}", " → ".join(map(str, outcome[way])))
    console.print(table)
    console.print(
        "Each turn is a whole process, loading included. Plain transformers: batches of 32 in file order, no proof, no drift, no report."
    )
    if args.json:
        ways = {way: {"turns": found, "withheld": outcome[way]} for way, found in turns.items()}
        args.json.write_text(json.dumps({"task": "run", **settings, "ways": ways}, indent=1) + "\n")


def add_to(commands: Any) -> None:
    """The subcommand ``run``."""
    command = commands.add_parser("run", help="a whole run, against the same by plain transformers")
    command.add_argument("--model", default="smollm2-refuser", help="a folder, a Hub id or a short name (default %(default)s)")
    command.add_argument("--limit", type=int, default=48, help="prompts of each set (default %(default)s)")
    command.add_argument("--tokens", type=int, default=32, help="of a reply at most (default %(default)s)")
    command.add_argument("--candidates", type=int, default=4, help="directions that are tried (default %(default)s)")
    command.add_argument("--repeat", type=int, default=5, help="turns (default %(default)s)")
    command.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the processor (default all cores)")
    command.add_argument("--work", type=Path, default=ROOT / "runs", metavar="DIR", help="where temporary folders are made (default runs/)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    command.set_defaults(run=bench)


if __name__ == "__main__":
    assert sys.argv[1] == "_plain", "run scripts/bench"
    plain(json.loads(sys.argv[2]))
