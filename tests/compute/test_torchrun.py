"""Several processes give what one gives: the same statistics, the same direction, the same selection, the same replies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
LIMIT = 150  # seconds, after which a hanging process is a failure


def prompts(path: Path, count: int, word: str) -> Path:
    path.write_text("".join(f"Tell me about {word} number {i}{'!' * (i % 5)}\n" for i in range(count)))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torchrun")
    save_tiny(path / "model", layers=4, shards="20KB", says="I won't.")
    prompts(path / "target.txt", 25, "weapons")
    prompts(path / "baseline.txt", 27, "gardens")
    return path


def several(count: int, place: Path, *command: str, before: tuple[str, ...] = (), **extra: str) -> None:
    """Run the program in ``count`` processes under torchrun."""
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "abliterate", *command]
    _done(call if count > 1 else [sys.executable, "-m", "abliterate", *command], place, **extra)


def environment(place: Path, **extra: str) -> dict[str, str]:
    mine = {"ABLITERATE_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **mine, **extra}


def _done(call: list[str], place: Path, **extra: str) -> None:
    done = subprocess.run(call, cwd=place, env=environment(place, **extra), capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-3000:]


def run_arguments(place: Path, out: str) -> list[str]:
    sets = ["--target", "target.txt", "--baseline", "baseline.txt", "--harmless", "baseline.txt"]
    fixed = ["--max-new-tokens", "5", "--batch-size", "4", "--device", "cpu", "--tune", "off"]
    return ["run", "--model", "model", *sets, *fixed, "--out", out]


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    several(1, place, *run_arguments(place, "alone"))
    return place / "alone"


def selection(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "selection.json").read_text())
    return found


def responses(run: Path, which: str) -> dict[str, str]:
    lines = (run / "transcripts" / f"{which}.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines)
    return {json.loads(line)["id"]: json.loads(line)["response"] for line in lines}


def assert_same(run: Path, other: Path) -> None:
    one, two = load_file(run / "directions.safetensors"), load_file(other / "directions.safetensors")
    for name in one:
        if name.startswith("direction"):
            cosine = torch.nn.functional.cosine_similarity(one[name].double(), two[name].double(), dim=-1)
            assert float(cosine[one[name].norm(dim=-1) > 0].min()) >= 1 - 1e-6
    assert selection(run)["chosen"]["name"] == selection(other)["chosen"]["name"]
    for mine, theirs in zip(selection(run)["candidates"], selection(other)["candidates"], strict=True):
        assert mine["name"] == theirs["name"]
        assert all(abs(mine[key] - theirs[key]) < 1e-3 for key in ("bypass", "induce", "kl", "stays"))
    for which in ("base", "edited"):
        assert responses(run, which) == responses(other, which)
    assert (other / "report.json").is_file()


@pytest.mark.parametrize("count", [2, 4])
def test_a_run_of_several_processes_is_that_of_one(place: Path, alone: Path, count: int) -> None:
    several(count, place, *run_arguments(place, f"of-{count}"))
    assert_same(alone, place / f"of-{count}")


def test_collected_statistics_are_those_of_one_process(place: Path) -> None:
    sets = ["--target", "target.txt", "--baseline", "baseline.txt", "--device", "cpu", "--positions", "3"]
    for count in (1, 3):
        several(count, place, "collect", "--model", "model", *sets, "--out", f"statistics-{count}.safetensors")
    one, three = (load_file(place / f"statistics-{count}.safetensors") for count in (1, 3))
    assert one.keys() == three.keys()
    for name in one:
        torch.testing.assert_close(three[name], one[name], atol=1e-5, rtol=1e-5)


def test_bad_input_ends_all_processes_with_one_line(place: Path) -> None:
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "abliterate"]
    call += ["collect", "--model", "model", "--target", "absent.txt", "--out", "x.safetensors"]
    done = subprocess.run(call, cwd=place, env=environment(place), capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("abliterate: ")]
    assert len(lines) == 1 and "absent.txt" in lines[0]
    assert not (place / "x.safetensors").exists()


# --- two machines: two network namespaces with a wire between them ---


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def two_machines() -> Iterator[Callable[[int, list[str]], list[str]]]:
    """Gives a function that puts a command on machine 0 or 1, whose addresses are 10.211.0.1 and .2."""
    names = [f"abl{os.getpid()}-{i}" for i in range(2)]
    wires = [f"abl{os.getpid() % 10000}w{i}" for i in range(2)]
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need ip and root")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", wires[0], "type", "veth", "peer", "name", wires[1])
        for i, (name, wire) in enumerate(zip(names, wires, strict=True)):
            _ip("link", "set", wire, "netns", name)
            _ip("-n", name, "addr", "add", f"10.211.0.{i + 1}/24", "dev", wire)
            _ip("-n", name, "link", "set", wire, "up")
            _ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        pytest.skip(f"network namespaces can't be made here ({error.stderr.decode().strip()})")
    yield lambda machine, command: ["ip", "netns", "exec", names[machine], *command]
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_machines_give_what_one_gives(place: Path, alone: Path, two_machines: Callable[[int, list[str]], list[str]]) -> None:
    machines = []
    for node in (0, 1):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1"]
        launch += ["--master-addr=10.211.0.1", "--master-port=29511", "-m", "abliterate", *run_arguments(place, "two-machines")]
        wire = f"abl{os.getpid() % 10000}w{node}"
        env = environment(place, GLOO_SOCKET_IFNAME=wire)
        machines.append(subprocess.Popen(two_machines(node, launch), cwd=place, env=env, stderr=subprocess.PIPE, text=True))
    for machine in machines:
        _, errors = machine.communicate(timeout=LIMIT)
        assert machine.returncode == 0, errors[-3000:]
    assert_same(alone, place / "two-machines")
