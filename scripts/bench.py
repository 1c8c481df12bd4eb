"""Measurements, each beside what else does the same on this machine.

``edit``: how long the edit of a bf16 checkpoint takes (its proof, its hashes and the self-check of an unknown architecture
included), against ``cp -r``, a bare read and write of the same bytes, and loading, editing and saving with transformers. Every
way ends with its files synced to the disk. They take turns, and each runs in a process of its own.

``collect``, ``generate``: bench_model.py. ``outcomes``: how well a judge tells outcomes, bench_outcomes.py.
``statistics``: how often the report's intervals hold the truth, bench_statistics.py. ``peers``: this program beside Heretic and others,
bench_peers.py. ``page``: how fast the report's page is, bench_page.py. Run by ``scripts/bench``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench_model
import bench_outcomes
import bench_page
import bench_peers
import bench_run
import bench_statistics
import bench_sweep
import bench_widths
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
GB = 1e9
SHARD = 2 * 10**9  # bytes at most
BUFFER = 1 << 24
SAMPLE = 0.005  # seconds between two looks at a process's memory
HEADS = 32
# (width, intermediate, vocabulary) of Llama-like models; the widest that has at least four blocks is taken.
SHAPES = ((4096, 11008, 32000), (2048, 5632, 32000), (1024, 2816, 8000), (512, 1408, 2000), (256, 704, 500))
MIN_BLOCKS = 4
WAYS = {
    "edit": "abliterate edit, a whole process: imports, self-check (its cache is empty), proof, hashes; the embedding is edited too",
    "cp": "cp -r",
    "bare": "read and write in Python through one buffer of 16 MB",
    "transformers": "from_pretrained in bf16, o_proj and down_proj orthogonalised in float32, save_pretrained; no proof",
}
console = Console(highlight=False)


@dataclass
class Figures:
    """What was measured of one way at one size."""

    seconds: list[float] = field(default_factory=list)
    first_byte: list[float] = field(default_factory=list)
    peak_anonymous: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Sized:
    """One checkpoint and its figures."""

    nbytes: int
    largest_tensor: int
    width: int
    blocks: int
    ways: dict[str, Figures] = field(default_factory=dict)


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


# --- a random checkpoint ---


def shape_for(nbytes: int) -> tuple[int, int, int, int]:
    """Width, intermediate size, vocabulary and blocks of a model of about ``nbytes`` in bf16."""
    for width, inner, vocab in SHAPES:
        block = 2 * (4 * width * width + 3 * width * inner)
        blocks = round((nbytes - 4 * vocab * width) / block)
        if blocks >= MIN_BLOCKS:
            break
    return width, inner, vocab, max(1, blocks)


def tensors_of(width: int, inner: int, vocab: int, blocks: int) -> dict[str, list[int]]:
    """Names and shapes, in the order in which transformers stores them."""
    made = {"model.embed_tokens.weight": [vocab, width]}
    for n in range(blocks):
        at = f"model.layers.{n}"
        made |= {f"{at}.self_attn.{p}_proj.weight": [width, width] for p in "qkvo"}
        made |= {f"{at}.mlp.{p}_proj.weight": [inner, width] for p in ("gate", "up")}
        made[f"{at}.mlp.down_proj.weight"] = [width, inner]
        made |= {f"{at}.{norm}_layernorm.weight": [width] for norm in ("input", "post_attention")}
    return made | {"model.norm.weight": [width], "lm_head.weight": [vocab, width]}


def write_model(folder: Path, nbytes: int) -> Sized:
    """A random Llama-like checkpoint in shards, written piece by piece."""
    width, inner, vocab, blocks = shape_for(nbytes)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": blocks, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": vocab, "hidden_act": "silu",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shapes = tensors_of(width, inner, vocab, blocks)
    sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > SHARD:
            shards.append([])
        shards[-1].append(name)
    files = {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, 1)}
    noise = _noise()
    for file, names in files.items():
        _write_shard(folder / file, {name: shapes[name] for name in names}, noise)
    weight_map = {name: file for file, names in files.items() for name in names}
    document = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document, indent=2))
    return Sized(sum(p.stat().st_size for p in folder.iterdir()), max(sizes.values()), width, blocks)


def _noise() -> memoryview:
    """64 MB of normal bf16 numbers; tensors are taken from it at shifting places."""
    import torch

    torch.manual_seed(0)
    return memoryview((0.02 * torch.randn(1 << 25)).bfloat16().view(torch.uint8).numpy())


def _write_shard(path: Path, shapes: dict[str, list[int]], noise: memoryview) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left, shift = position, 0
        while left:
            piece = noise[shift:][:left]
            file.write(piece)
            left, shift = left - len(piece), (shift + 7_654_322) % (len(noise) // 2)
        file.flush()
        os.fsync(file.fileno())


# --- the ways, each in its own process ---


def run_edit(model: Path, out: Path, started: float) -> None:
    """The program's own edit along a random direction; prints the seconds from ``started`` to the first byte of a shard."""
    import torch

    from abliterate.checkpoint.edit import edit_checkpoint  # the imports are part of what is measured
    from abliterate.model.edit import edit_from_direction
    from abliterate.model.folder import open_folder

    first: list[float] = []
    folder = open_folder(model)
    edit = edit_from_direction(torch.randn(folder.d_model, generator=torch.Generator().manual_seed(1)), folder.layers, tied=folder.tied)

    def advance(done: int) -> None:
        if not first:
            first.append(time.monotonic() - started)

    edit_checkpoint(folder, edit, out, "random", lambda proof: "", advance)
    print(first[0])


def run_transformers(model: Path, out: Path, started: float) -> None:
    """What scripts do with transformers: load in bf16, orthogonalise o_proj and down_proj, save; no proof."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    r = torch.randn(loaded.config.hidden_size, generator=torch.Generator().manual_seed(1))
    r /= r.norm()
    with torch.no_grad():
        for name, weight in loaded.named_parameters():
            if name.endswith(("self_attn.o_proj.weight", "mlp.down_proj.weight")):
                wide = weight.float()
                weight.copy_(wide - torch.outer(r, r @ wide))
    loaded.save_pretrained(out, max_shard_size="2GB")
    _sync(out)


def run_bare(model: Path, out: Path, started: float) -> None:
    """Read and write, with nothing else."""
    out.mkdir()
    buffer = memoryview(bytearray(BUFFER))
    for path in sorted(model.iterdir()):
        with path.open("rb", buffering=0) as source, (out / path.name).open("wb", buffering=0) as target:
            while count := source.readinto(buffer):
                piece = buffer[:count]
                while piece:
                    piece = piece[target.write(piece) :]
            os.fsync(target.fileno())
    _sync(out)


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


RUNNERS: dict[str, Callable[[Path, Path, float], None]] = {"edit": run_edit, "bare": run_bare, "transformers": run_transformers}


def measure(way: str, model: Path, place: Path, figures: Figures) -> None:
    """Run one way in a new process from ``model`` to a new folder, which is removed afterwards."""
    out, cache = place / "out", place / "cache"
    started = time.monotonic()
    if way == "cp":
        command = ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/* "$1"', str(model), str(out)]
    else:
        command = [sys.executable, __file__, "_run", way, str(model), str(out), str(started)]
    environment = {**os.environ, "ABLITERATE_CACHE": str(cache), "TRANSFORMERS_VERBOSITY": "error", "PYTHONPATH": str(ROOT)}
    try:
        printed, peak = _watched(command, environment)
        figures.seconds.append(time.monotonic() - started)
        figures.peak_anonymous.append(peak)
        if way == "edit":
            figures.first_byte.append(float(printed.split()[-1]))
    finally:
        for left in (*place.glob(".out.partial-*"), out, cache):
            shutil.rmtree(left, ignore_errors=True)


def _watched(command: Sequence[str], environment: dict[str, str]) -> tuple[str, int]:
    """What a process printed, and its largest RssAnon (looked up from outside every 5 ms)."""
    peak = 0
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(SAMPLE)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    printed = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"bench: {' '.join(command[2:4])} failed with {process.returncode}")
    return printed, peak


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


# --- the table ---


def bench_edit(args: argparse.Namespace) -> None:
    """Every way at every size, in turns; the table and the figures."""
    args.work.mkdir(parents=True, exist_ok=True)
    needed = int(2.1 * max(args.sizes) * GB) + 10**8  # a checkpoint and one new one
    if (free := shutil.disk_usage(args.work).free) < needed:
        say(f"bench: {args.work}: {free / GB:.1f} GB free, {needed / GB:.1f} GB needed; give another --work or smaller --sizes")
        sys.exit(2)
    with scratch(args.work) as place:
        results = [measured(size, args, place) for size in args.sizes]
    figures = {"machine": machine(args.work), **summary(results)}
    show(results, figures, args)
    if args.json:
        record = {"repeat": args.repeat, "sizes": [as_record(sized) for sized in results], **figures}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


def measured(size: float, args: argparse.Namespace, place: Path) -> Sized:
    """One checkpoint through every way, ``args.repeat`` times, each round beginning with another one."""
    model = place / "model"
    say(f"{size:g} GB: writing a random checkpoint")
    sized = write_model(model, int(size * GB))
    say(f"{size:g} GB: {sized.nbytes / GB:.2f} GB, {sized.blocks} blocks of width {sized.width}; reading it once")
    for path in model.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(BUFFER):
                pass
    ways = [way for way in WAYS if way != "transformers" or size <= args.transformers_limit]
    sized.ways = {way: Figures() for way in ways}
    for number in range(args.repeat):
        turn = number % len(ways)
        for way in ways[turn:] + ways[:turn]:
            measure(way, model, place, sized.ways[way])
            say(f"{size:g} GB, round {number + 1} of {args.repeat}: {way}: {sized.ways[way].seconds[-1]:.2f} s")
    shutil.rmtree(model)
    return sized


@contextmanager
def scratch(work: Path) -> Iterator[Path]:
    """A folder of our own, gone afterwards, also when interrupted or asked to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    place = Path(tempfile.mkdtemp(prefix="bench-", dir=work))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def line_through(results: list[Sized], way: str) -> tuple[float, float] | None:
    """Seconds a GB between the two largest sizes, and the seconds that remain at none."""
    both = sorted((sized for sized in results if way in sized.ways), key=lambda s: s.nbytes)[-2:]
    if len(both) < 2:
        return None
    (x, y), (u, v) = ((sized.nbytes / GB, sized.ways[way].median) for sized in both)
    slope = (v - y) / (u - x)
    return slope, y - slope * x


def summary(results: list[Sized]) -> dict[str, Any]:
    """Slopes, and each target with what was found."""
    lines = {way: line_through(results, way) for way in WAYS}
    edit, cp = lines["edit"], lines["cp"]
    anonymous = [(max(s.ways["edit"].peak_anonymous), 3 * s.largest_tensor + 400_000_000) for s in results]
    speedups = [s.ways["transformers"].median / s.ways["edit"].median for s in results if "transformers" in s.ways]
    slope = edit[0] / cp[0] if edit and cp and min(edit[0], cp[0]) > 0 else None  # noise at sizes that are too small
    first = max(statistics.median(s.ways["edit"].first_byte) for s in results)
    peak, allowed = max(anonymous, key=lambda pair: pair[0] / pair[1])
    targets = [
        ("slope of edit / slope of cp", slope, "at most 1.5", slope is not None and slope <= 1.5),
        ("fixed cost of edit, s", first, "at most 10", first <= 10),
        ("peak anonymous memory of edit, MB", peak / 1e6, f"at most {allowed / 1e6:.0f} (3 largest tensors + 400)", peak <= allowed),
        (
            "transformers / edit, at its largest size",
            speedups[-1] if speedups else None,
            "at least 3",
            bool(speedups) and speedups[-1] >= 3,
        ),
    ]
    slopes = {way: None if line is None else {"seconds_per_gb": line[0], "intercept_seconds": line[1]} for way, line in lines.items()}
    return {"lines": slopes, "targets": [dict(zip(("what", "found", "target", "met"), target, strict=True)) for target in targets]}


def machine(work: Path) -> str:
    """What the figures depend on."""
    system = subprocess.run(["stat", "-f", "-c", "%T", str(work)], capture_output=True, text=True).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    return f"{len(os.sched_getaffinity(0))} CPUs, {memory:.0f} GB of memory, file system {system or 'unknown'}"


def as_record(sized: Sized) -> dict[str, Any]:
    """One size for the JSON file."""
    ways = {way: {"median_seconds": found.median, **vars(found)} for way, found in sized.ways.items()}
    return {**vars(sized), "ways": ways}


def show(results: list[Sized], figures: dict[str, Any], args: argparse.Namespace) -> None:
    """Tables on stdout."""
    table = Table(title=f"edit: medians of {args.repeat} (min–max)")
    for column in ("GB", "way", "seconds", "× cp", "fixed s", "anon MB"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for sized in results:
        for way, found in sized.ways.items():
            spread = f"{found.median:.2f} ({min(found.seconds):.2f}–{max(found.seconds):.2f})"
            first = f"{statistics.median(found.first_byte):.2f}" if found.first_byte else ""
            peak = f"{max(found.peak_anonymous) / 1e6:.0f}" if way != "cp" else ""
            table.add_row(f"{sized.nbytes / GB:.2f}", way, spread, f"{found.median / sized.ways['cp'].median:.1f}", first, peak)
        table.add_section()
    console.print(table)
    for way, line in figures["lines"].items():
        if line:
            slope, intercept = line["seconds_per_gb"], line["intercept_seconds"]
            console.print(f"{way}: {slope:.2f} s/GB between the two largest sizes, {intercept:+.2f} s at none")
    targets = Table(title="targets")
    for column in ("what", "found", "target", "met"):
        targets.add_column(column)
    for target in figures["targets"]:
        found = "not measured" if target["found"] is None else f"{target['found']:.2f}"
        met = "–" if target["found"] is None else "yes" if target["met"] else "no"
        targets.add_row(target["what"], found, target["target"], met)
    console.print(targets)
    for way, text in WAYS.items():
        console.print(f"- {way}: {text}")
    console.print(
        "Every way runs in a process of its own and ends with its files synced; the page cache is warm (the source was read once, nothing "
        "is dropped).\nfixed: from the start of the process to the first byte of a shard. anon: the largest RssAnon in /proc/PID/status, "
        "looked up from outside every 5 ms, so a shorter peak is missed. transformers is left out above "
        f"{args.transformers_limit:g} GB. {figures['machine']}."
    )


def sizes(text: str) -> list[float]:
    """``1,4,12`` as numbers, smallest first."""
    found = sorted(float(part) for part in text.split(","))
    if not found or found[0] <= 0:
        raise argparse.ArgumentTypeError("sizes are GB above 0")
    return found


def positive(text: str) -> int:
    """A number of times."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def main() -> int:
    """Parse and run."""
    if sys.argv[1:2] == ["_run"]:  # a process that is being measured
        way, model, out, started = sys.argv[2:]
        RUNNERS[way](Path(model), Path(out), float(started))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    edit = commands.add_parser("edit", help="edit against cp, bare read and write, and transformers")
    edit.add_argument("--sizes", type=sizes, default=[1.0, 4.0, 12.0], metavar="GB,...", help="of the checkpoints (default 1,4,12)")
    edit.add_argument("--repeat", type=positive, default=5, help="times each is measured (default %(default)s)")
    edit.add_argument("--work", type=Path, default=ROOT / "runs", metavar="DIR", help="where a temporary folder is made (default runs/)")
    edit.add_argument("--transformers-limit", type=float, default=4.0, metavar="GB", help="largest size for transformers (default 4)")
    edit.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    edit.set_defaults(run=bench_edit)
    bench_model.add_to(commands)
    bench_sweep.add_to(commands)
    bench_run.add_to(commands)
    bench_statistics.add_to(commands)
    bench_outcomes.add_to(commands)
    bench_peers.add_to(commands)
    bench_page.add_to(commands)
    bench_widths.add_to(commands)
    args = parser.parse_args()
    try:
        args.run(args)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
