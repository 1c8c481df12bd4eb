"""This program beside its peers: the same model, prompts, token budget and machine, and one final test for every model that comes out.

``ours``: ``abliterate run`` with a target and something to keep. ``heretic``: Heretic in an environment of its own (made here), with
its own defaults but for the prompts, their number and the length of replies; of its front the points with the fewest refusals, the
lowest KL, and the knee. ``refusal_direction`` and ``llm-abliteration``: what these publish, as settings of this program. Each way is
timed in a process of its own; ``abliterate compare`` then tests every derived model alike, on test prompts that no way has seen.
What is done stays in the results folder, and the same command goes on from there. Run by ``scripts/bench peers``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_peers_table import HERETIC_TRIALS, table, verdicts

ROOT = Path(__file__).resolve().parents[1]
DRIVER = Path(__file__).with_name("bench_heretic.py")
HERETIC, TORCH = "heretic-llm==1.4.0", "torch==2.13.0"
WAYS = ("ours", "refusal_direction", "llm-abliteration", "heretic")
OTHER = {"harmful": ["censorship"], "censorship": ["harmful"]}
HARMLESS, BORDERLINE = "harmless", "borderline"
FINAL_TEST = ("transcripts", "drift", "lm-eval", "random directions", "recovery")  # how the names of a run's stages of the final test begin
# Arditi et al. 2024: one difference of means, taken out everywhere at full strength. Only the scores of its single directions are
# used, so the run's replies may be one token long.
REFUSAL_DIRECTION = ("--tune", "off", "--candidates", "8", "--estimators", "difference-of-means", "--embedding", "edit")
# Projected directions, a direction a block, lengths kept; there a person reads layers off charts, here our choice stands in.
LLM_ABLITERATION = ("--tune", "off", "--estimators", "projected", "--norms", "keep")


class FailedError(Exception):
    """A way that did not come to its end; the message is one line."""


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Task:
    """What all ways share. ``folder`` is the model's own, ``work`` holds the results."""

    folder: Path
    target: tuple[str, ...]
    keep: tuple[str, ...]
    limit: int | None
    tokens: int
    threads: int
    seed: int
    work: Path

    def prompts(self) -> dict[str, list[str]]:
        """Heretic's four lists: its bad and good prompts are our train prompts, those it evaluates on our val prompts.

        One line each: line breaks within a prompt become spaces.
        """
        from abliterate.prompts import RoleSets

        sets = RoleSets(self.target, (), self.keep, HARMLESS, self.limit)
        asked = {
            "bad_prompts": sets.prompts("target", "train"),
            "good_prompts": sets.prompts("baseline", "train"),
            "bad_evaluation_prompts": sets.prompts("target", "val"),
            "good_evaluation_prompts": sets.prompts("harmless", "val"),
        }
        return {name: [" ".join(prompt.text.split()) for prompt in found] for name, found in asked.items()}

    def asked(self) -> list[str]:
        """The sets of the final test beside the kept ones: target, its controls, harmless, and what only looks harmful."""
        from abliterate.prompts.roles import default_baseline

        names = dict.fromkeys([*self.target, *default_baseline(self.target), HARMLESS, BORDERLINE])
        return [name for name in names if name not in self.keep]


# --- processes ---


def child(command: Sequence[str], log: Path, threads: int, cwd: Path = ROOT, own: bool = True) -> dict[str, Any]:
    """Run a process to its end, its output in ``log``. Returns its command, seconds and peak memory. Raises FailedError."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    if own:
        environment["PYTHONPATH"] = str(ROOT)
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise FailedError(f"{shlex.join(command[1:4])} ended with {process.returncode}: {''.join(said)} ({log})")
    seconds, processor = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    return {"command": shlex.join(command), "seconds": seconds, "processor_seconds": processor, "peak_rss_bytes": usage.ru_maxrss * 1024}


def abliterate(command: str, *arguments: Any) -> list[str]:
    """A command line of this program."""
    return [sys.executable, "-m", "abliterate", command, *map(str, arguments)]


# --- this program, and what others publish as its settings ---


def run_ours(task: Task, place: Path, flags: Sequence[str]) -> dict[str, Any]:
    """A whole run; its seconds without those of its own final test."""
    limit = () if task.limit is None else ("--limit", task.limit)
    arguments = ("--model", task.folder, "--target", *task.target, *limit, "--max-new-tokens", task.tokens, "--out", place / "run", *flags)
    cost = child(abliterate("run", *arguments), place / "run.log", task.threads)
    stages = read(place / "run" / "report.json")["cost"]["seconds"]
    tested = sum(seconds for name, seconds in stages.items() if name.startswith(FINAL_TEST))
    return {**cost, "seconds": cost["seconds"] - tested, "final_test_seconds": tested, "stages": stages}


def make_ours(task: Task, place: Path, flags: Sequence[str]) -> dict[str, Any]:
    """This program's way, with what should stay."""
    keep = ("--keep", *task.keep) if task.keep else ()
    cost = run_ours(task, place, (*keep, "--seed", str(task.seed), *flags))
    return {"cost": cost, "models": [{"name": "ours", "folder": str(place / "run" / "checkpoint"), "what": chosen(place / "run")}]}


def make_llm_abliteration(task: Task, place: Path) -> dict[str, Any]:
    """llm-abliteration's directions and edit."""
    cost = run_ours(task, place, LLM_ABLITERATION)
    model = {"name": "llm-abliteration", "folder": str(place / "run" / "checkpoint"), "what": chosen(place / "run")}
    return {"cost": cost, "models": [model]}


def make_refusal_direction(task: Task, place: Path) -> dict[str, Any]:
    """refusal_direction's choice among single directions, and its edit of every matrix, the embedding too."""
    from safetensors.torch import load_file, save_file

    cost = run_ours(task, place, (*REFUSAL_DIRECTION, "--max-new-tokens", "1"))
    row, relaxed = best_single(read(place / "run" / "selection.json")["candidates"])
    found = load_file(place / "run" / "directions.safetensors")["difference-of-means"]
    file, out = place / "direction.safetensors", place / "checkpoint"
    save_file({"direction": found[-1 - row["position"], row["layer"] + 1].contiguous()}, file)
    shutil.rmtree(place / "run" / "checkpoint")
    command = abliterate("edit", "--model", task.folder, "--direction", file, "--embedding", "edit", "--out", out)
    edit = child(command, place / "edit.log", task.threads)
    cost["seconds"] += edit["seconds"]
    cost["command"] += " ; " + edit["command"]
    return {
        "cost": cost,
        "models": [{"name": "refusal_direction", "folder": str(out), "what": "; relaxed: ".join([row["name"], *relaxed])}],
    }


def best_single(candidates: Sequence[Mapping[str, Any]], max_kl: float = 0.1) -> tuple[Mapping[str, Any], list[str]]:
    """The published rule: of the directions that induce refusals and keep harmless first tokens within ``max_kl`` nats, the one that
    bypasses most. Returns it, and in words what was relaxed where there is none: induced refusals first, then the bound, by doubling."""
    rows = [row for row in candidates if row["kind"] == "single" and row["estimator"] == "difference-of-means"]
    left, relaxed = [row for row in rows if row["induce"] > 0], []
    if not left:
        left, relaxed = rows, ["no direction induces refusals"]
    while left and not any(row["kl"] < max_kl for row in left):
        max_kl *= 2
    if not left:
        raise FailedError("refusal_direction: the run tried no single difference of means")
    relaxed += [f"KL < {max_kl:g}"] if max_kl != 0.1 else []
    return min((row for row in left if row["kl"] < max_kl), key=lambda row: row["bypass"]), relaxed


def chosen(run: Path) -> str:
    """The edit of a run, in words."""
    selection = read(run / "selection.json")
    tuning = selection.get("tuning")
    how = f"tuned: {tuning['kind']}, {tuning['steps']} steps" if tuning else f"strength {selection['strength']:g}"
    return f"{selection['chosen']['name']}, {how}"


# --- Heretic ---


def python_of(env: Path) -> Path:
    """The interpreter of Heretic's environment; the environment is made where it isn't there."""
    python = env / "bin" / "python"
    name, wanted = HERETIC.split("==")
    there = f"import importlib.metadata as m, sys; sys.exit(m.version({name!r}) != {wanted!r})"
    if python.exists() and subprocess.run([python, "-c", there], stderr=subprocess.DEVNULL).returncode == 0:
        return python
    say(f"heretic: making {env} ({TORCH}, {HERETIC})")
    subprocess.run([sys.executable, "-m", "venv", env], check=True)
    for package in (TORCH, HERETIC):  # torch first, so that no other build of it is fetched
        subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True, stdout=sys.stderr)
    return python


def heretic_config(task: Task, place: Path, trials: int, more: Mapping[str, Any]) -> str:
    """The text of config.toml; the prompts' files are written beside it. Whatever isn't in it is Heretic's default."""
    settings = {"model": str(task.folder), "n_trials": trials, "max_response_length": task.tokens, "seed": task.seed}
    settings |= {"export_strategy": "merge", **more}
    lines = [f"{key} = {toml(value)}" for key, value in settings.items()]
    for name, texts in task.prompts().items():
        file = place / f"{name}.txt"
        file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        lines += [f"[{name}]", f"dataset = {toml(str(file))}"]
    return "\n".join(lines) + "\n"


def toml(value: Any) -> str:
    """A text, number, truth value or list of these in TOML, which writes them as JSON does."""
    return json.dumps(value, ensure_ascii=False)


def make_heretic(task: Task, place: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A study, its front, and the edited models of some of its points, saved by Heretic itself."""
    place.mkdir(parents=True)
    python = python_of(args.env)

    def asked(command: str) -> dict[str, Any]:
        done = subprocess.run([python, DRIVER, command], cwd=place, capture_output=True, text=True)
        if done.returncode:
            raise FailedError(f"heretic: {command}: {done.stderr.strip().splitlines()[-1:]}")
        return dict(json.loads(done.stdout.splitlines()[-1]))

    known, more = asked("defaults"), dict(args.heretic)
    if args.markers:
        more["refusal_markers"] = [*more.get("refusal_markers", known["settings"]["refusal_markers"]), *args.markers]
    (place / "config.toml").write_text(heretic_config(task, place, args.trials, more), encoding="utf-8")
    cost = child([str(python), str(DRIVER), "study"], place / "study.log", task.threads, cwd=place, own=False)
    study = asked("trials")
    each = [trial["seconds"] for trial in study["trials"]]
    setup, trial = cost["seconds"] - sum(each), statistics.median(each)
    cost |= {"setup_seconds": setup, "trial_seconds": trial, "default_trials_seconds": setup + HERETIC_TRIALS * trial}
    ends = front(study["trials"])
    picked = points(ends)
    wanted = {str(t["index"]): str(place / f"trial-{t['index']}") for t in picked.values()}
    saved = child([str(python), str(DRIVER), "save", json.dumps(wanted)], place / "save.log", task.threads, cwd=place, own=False)
    models = [
        {"name": f"heretic, {name}", "folder": wanted[str(t["index"])], "what": f"trial {t['index']}, by its own count (val): {point(t)}"}
        for name, t in picked.items()
    ]
    return {"cost": {**cost, "save_seconds": saved["seconds"]}, "models": models, "study": {**study, **known, "front": ends}}


def front(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trials that no other beats in refusals and KL, from the fewest refusals to the lowest KL; as Heretic offers them."""
    found: list[Mapping[str, Any]] = []
    for trial in sorted(trials, key=lambda t: (t["refusals"], t["kl_divergence"])):
        if not found or trial["kl_divergence"] < found[-1]["kl_divergence"]:
            found.append(trial)
    return found


def point(trial: Mapping[str, Any]) -> str:
    """``3/48 refusals at KL 0.162``."""
    return f"{trial['refusals']}/{trial['n_bad_prompts']} refusals at KL {trial['kl_divergence']:.3f}"


def points(ends: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The two ends of a front and its knee: what lies farthest below the line between the ends."""
    if len(ends) == 1:
        return {"its only point": ends[0]}
    first, last = ends[0], ends[-1]
    wide, high = last["refusals"] - first["refusals"], first["kl_divergence"] - last["kl_divergence"]

    def below(t: Mapping[str, Any]) -> float:
        return -(t["refusals"] - first["refusals"]) / wide - (t["kl_divergence"] - last["kl_divergence"]) / high

    found = {"fewest refusals": first, "lowest KL": last}
    return found if len(ends) == 2 else {**found, "knee": max(ends[1:-1], key=below)}


# --- the final test, the same for all ---


def test(task: Task, model: Mapping[str, Any], place: Path, tokens: int, limit: int | None, flags: Sequence[str]) -> dict[str, Any]:
    """One derived model beside its base, on test prompts."""
    keep = ("--keep", *task.keep) if task.keep else ()
    few = () if limit is None else ("--limit", limit)
    arguments = ("--base", task.folder, "--derived", model["folder"], "--prompts", *task.asked(), *keep, *few)
    command = abliterate("compare", *arguments, "--max-new-tokens", tokens, "--out", place, *flags)
    child(command, place.with_name(f"{place.name}.log"), task.threads)
    return {"test_command": shlex.join(command), **figures(read(place / "report.json"))}


def figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the table shows of a report, and a little more."""

    def rates(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {key: {k: entry[key][k] for k in ("k", "n", "rate", "ci95")} for key in ("withheld", "refused", "degenerate")}

    sets = {name: {side: rates(entry[side]) for side in ("base", "edited")} for name, entry in report["sets"].items()}
    tests = [{key: test[key] for key in ("set", "margin", "upper_bound", "holds")} for test in report["keep_tests"]]
    measured = report["drift"] or {}
    drift = {key: value for key, value in measured.items() if key.startswith(("kl_", "ce_"))}
    return {"sets": sets, "keep_tests": tests, "drift": drift, "test_seconds": sum(report["cost"]["seconds"].values())}


# --- all of it ---


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def kept_settings(args: argparse.Namespace, task: Task) -> dict[str, Any]:
    """What the results in the folder depend on. Ends the program where they are of other settings."""
    settings = {**vars(task), **{key: getattr(args, key) for key in ("trials", "run_flags", "heretic", "markers")}}
    settings = json.loads(json.dumps(settings, default=str))
    file = task.work / "settings.json"
    if file.exists():
        before = read(file)
        if other := [key for key in settings if settings[key] != before.get(key)]:
            sys.exit(f"bench: {task.work}: holds results with another {other[0]} ({before.get(other[0])}); give another --work")
    file.write_text(json.dumps(settings, indent=1) + "\n")
    return dict(settings)


def made(task: Task, way: str, args: argparse.Namespace) -> dict[str, Any]:
    """The models of a way; read back where they are there, begun anew where the way was interrupted, so that its time is of one go."""
    place = task.work / way
    done = place / "made.json"
    if done.exists():
        return read(done)
    shutil.rmtree(place, ignore_errors=True)
    say(f"{way}: begun")
    makers = {
        "ours": lambda: make_ours(task, place, shlex.split(args.run_flags)),
        "refusal_direction": lambda: make_refusal_direction(task, place),
        "llm-abliteration": lambda: make_llm_abliteration(task, place),
        "heretic": lambda: make_heretic(task, place, args),
    }
    found = makers[way]()
    done.write_text(json.dumps(found, indent=1) + "\n")
    say(f"{way}: {found['cost']['seconds']:.0f} s")
    return found


def rows_of(task: Task, args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """All ways made one after the other, then all models tested. A way that fails has a row that says why."""
    rows: list[dict[str, Any]] = []
    study = None
    for way in args.only:
        try:
            found = made(task, way, args)
        except FailedError as failure:
            rows.append({"name": way, "way": way, "failed": str(failure)})
            say(f"{way}: {failure}")
            continue
        study = found.get("study", study)
        rows += [{"way": way, "cost": found["cost"], **model} for model in found["models"]]
    for row in rows:
        if "folder" in row:
            try:
                place = task.work / row["way"] / f"test-{Path(row['folder']).name}"
                row |= test(task, row, place, args.test_tokens, args.test_limit, shlex.split(args.test_flags))
                say(f"{row['name']}: tested in {row['test_seconds']:.0f} s")
            except FailedError as failure:
                row["failed"] = str(failure)
                say(f"{row['name']}: {failure}")
    return rows, study


def machine() -> str:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{name}, {len(os.sched_getaffinity(0))} CPUs, {memory:.0f} GB of memory"


def bench(args: argparse.Namespace) -> None:
    """Everything, shown and written down."""
    sys.path.insert(0, str(ROOT))
    from abliterate import __version__
    from abliterate.errors import InputError
    from abliterate.model.source import resolve_model
    from abliterate.prompts import load_set

    keep = args.keep if args.keep is not None else [name for target in args.target for name in OTHER.get(target, [])]
    args.work.mkdir(parents=True, exist_ok=True)
    args.work, args.env = args.work.resolve(), args.env.resolve()
    try:
        folder = resolve_model(args.model, None).path
        task = Task(folder, tuple(args.target), tuple(keep), args.limit, args.tokens, args.threads, args.seed, args.work)
        sizes = {name: len(texts) for name, texts in task.prompts().items()}
    except InputError as error:
        sys.exit(f"bench: {error}")
    settings = kept_settings(args, task)
    rows, study = rows_of(task, args)
    target, kept = ([load_set(name).name for name in given] for given in (task.target, task.keep))
    shown = [*table(target, kept, rows), "", *(f"- {row['name']}: {row['what']}" for row in rows if "what" in row)]
    shown += [f"- {line}" for line in verdicts(target, rows)]
    if study is not None:
        shown += ["", "Heretic's front by its own count (val): " + ", ".join(point(t) for t in study["front"])]
    print("\n".join(shown))
    versions = {"abliterate": __version__, **{name: version(name) for name in ("torch", "transformers")}}
    record = {"task": "peers", "machine": machine(), "settings": settings, "versions": versions, "search_prompts": sizes, "rows": rows}
    text = json.dumps({**record, "heretic": study}, indent=1, ensure_ascii=False) + "\n"
    (task.work / "table.md").write_text("\n".join(shown) + "\n", encoding="utf-8")
    for file in [task.work / "peers.json", *([args.json] if args.json else [])]:
        file.write_text(text, encoding="utf-8")
    if any("failed" in row for row in rows):
        sys.exit(1)


def _ways(text: str) -> list[str]:
    ways = text.split(",")
    if unknown := [way for way in ways if way not in WAYS]:
        raise argparse.ArgumentTypeError(f"no way {unknown[0]!r}; there are {', '.join(WAYS)}")
    return ways


def _setting(text: str) -> tuple[str, Any]:
    try:
        ((key, value),) = tomllib.loads(text).items()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not one KEY=VALUE in TOML (texts in quotes)") from None
    return key, value


def add_to(commands: Any) -> None:
    """The subcommand ``peers``."""
    command = commands.add_parser("peers", help="a scoped run, against Heretic and others' published procedures")
    command.add_argument("--model", default="smollm2-refuser", help="a folder, a Hub id or a short name (default %(default)s)")
    command.add_argument("--target", nargs="+", default=["harmful"], metavar="SET", help="what should go (default harmful)")
    command.add_argument("--keep", nargs="*", metavar="SET", help="what should stay (default: censorship with harmful, and the other way)")
    command.add_argument("--only", type=_ways, default=list(WAYS), metavar="WAY,...", help=f"of {', '.join(WAYS)} (default all)")
    command.add_argument("--trials", type=int, default=24, help="of Heretic's study (default %(default)s; its own default is 200)")
    command.add_argument("--limit", type=int, help="train prompts of each set at most, a third of it in val (default all)")
    command.add_argument("--tokens", type=int, default=32, help="of a reply, while an edit is searched (default %(default)s)")
    command.add_argument("--test-limit", type=int, help="prompts of each set at most in the final test (default all)")
    command.add_argument("--test-tokens", type=int, default=64, help="of a reply in the final test (default %(default)s)")
    command.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the processor (default all cores)")
    command.add_argument("--seed", type=int, default=0, help="of what is drawn (default %(default)s)")
    command.add_argument(
        "--run-flags", default="", metavar="FLAGS", help='more flags of our run, in one argument (--run-flags="--prefer quality")'
    )
    command.add_argument("--test-flags", default="", metavar="FLAGS", help="more flags of compare, in one argument")
    command.add_argument("--heretic", type=_setting, action="append", default=[], metavar="KEY=VALUE", help="another setting of Heretic's")
    command.add_argument("--markers", nargs="+", default=[], metavar="TEXT", help="what Heretic takes for refusals beside its own list")
    command.add_argument("--env", type=Path, default=ROOT / "runs" / "heretic-env", metavar="DIR", help="Heretic's environment")
    command.add_argument("--work", type=Path, default=ROOT / "runs" / "peers", metavar="DIR", help="the results (default runs/peers)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    command.set_defaults(run=bench)
