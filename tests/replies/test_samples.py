"""Sampled replies: reproducible, each on its own, resumed without loss or doubles, and nothing that greedy replies notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import save_tiny
from serving import StandIn, running

from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.prompts import Prompt, PromptSet
from abliterate.replies.asking import Asking
from abliterate.replies.generate import generate
from abliterate.replies.samples import GREEDY, Sampling
from abliterate.replies.served import Served
from abliterate.replies.server import Server
from abliterate.replies.transcripts import Transcript, greedy, read, samples_of

ROOT = Path(__file__).parents[2]
TEXTS = ["Hi", "What is the capital of France?", "Sing", "Tell me a very long story about a cat", "2+2", "你好", "Why?"]
FACTS = ("Paris",)
SETS = [
    PromptSet("one", tuple(Prompt(f"a{i}", text, facts=FACTS if i % 2 else ()) for i, text in enumerate(TEXTS[:4]))),
    PromptSet("two", tuple(Prompt(f"a{i}", text, facts=FACTS) for i, text in enumerate(TEXTS[4:]))),
]
SAMPLED = 5  # prompts with facts
NASTY = "p\x00\u2028</script>\udc80"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    return load_model(save_tiny(tmp_path_factory.mktemp("tiny") / "model", layers=2), device="cpu")


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abliterate.compute.whole.model.SEGMENT", 1)


def ask(
    model: WholeModel, path: Path, sampling: Sampling, size: int = 3, sets: list[PromptSet] = SETS, budget: int | None = None
) -> list[Transcript]:
    return generate(replace(model, batch_size=size), sets, path, 6, budget=budget, sampling=sampling)


def said(made: list[Transcript]) -> dict[tuple[str, str, int], str]:
    return {t.key: t.response for t in made}


def test_only_prompts_with_facts_are_sampled_and_after_the_greedy_replies(model: WholeModel, tmp_path: Path) -> None:
    made = ask(model, tmp_path / "t.jsonl", Sampling(2))
    assert [t.key for t in made[:7]] == [(group.name, p.id, 0) for group in SETS for p in group]
    assert [t.key for t in made[7:]] == [(group.name, p.id, n) for group in SETS for p in group if p.facts for n in (1, 2)]
    assert len(made) == 7 + 2 * SAMPLED and {len(found) for found in samples_of(made).values()} == {2}


def test_sampled_replies_are_the_same_again_and_others_with_another_seed(model: WholeModel, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        ask(model, tmp_path / name, Sampling(3))
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    other = ask(model, tmp_path / "c.jsonl", Sampling(3, seed=1))
    first = read(tmp_path / "a.jsonl")
    assert said(greedy(other)) == said(greedy(first))
    assert all(said(other)[t.key] != t.response for t in first if t.sample)
    for found in samples_of(first).values():
        assert len({t.response for t in found}) == 3


@pytest.mark.parametrize("budget", [None, 2])
def test_a_sample_depends_on_neither_the_batch_nor_the_other_prompts_nor_the_other_samples(
    model: WholeModel, tmp_path: Path, budget: int | None
) -> None:
    whole = said(ask(model, tmp_path / "whole.jsonl", Sampling(3), budget=budget))
    for size in (1, 7):
        assert said(ask(model, tmp_path / f"{size}.jsonl", Sampling(3), size, budget=budget)) == whole
    fewer = said(ask(model, tmp_path / "fewer.jsonl", Sampling(1), sets=SETS[1:], budget=budget))
    assert fewer == {key: text for key, text in whole.items() if key[0] == "two" and key[2] <= 1}


def test_greedy_replies_are_written_as_without_samples(model: WholeModel, tmp_path: Path) -> None:
    ask(model, tmp_path / "without.jsonl", GREEDY)
    ask(model, tmp_path / "with.jsonl", Sampling(2))
    without, both = ((tmp_path / name).read_bytes() for name in ("without.jsonl", "with.jsonl"))
    assert both.startswith(without) and len(both) > len(without)


def test_sampling_cut_anywhere_ends_as_without_the_cut(model: WholeModel, tmp_path: Path) -> None:
    whole = ask(model, tmp_path / "whole.jsonl", Sampling(2))
    data, cut = (tmp_path / "whole.jsonl").read_bytes(), tmp_path / "cut.jsonl"
    for length in (0, *(len(data) * i // 7 for i in range(1, 7)), len(data) - 1, len(data)):
        cut.write_bytes(data[:length])
        assert ask(model, cut, Sampling(2)) == whole
        assert cut.read_bytes() == data


CHILD = """
import os, signal, sys
from pathlib import Path
from test_samples import SETS, Sampling, generate, load_model, replace
done = 0
def advance(n):
    global done
    done += n
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
model = replace(load_model(Path(sys.argv[1]), device="cpu"), batch_size=1)
generate(model, SETS, Path(sys.argv[2]), 6, advance, sampling=Sampling(2))
"""


def test_an_audit_killed_among_its_samples_goes_on_without_loss_or_doubles(model: WholeModel, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])}
    call = [sys.executable, "-c", CHILD, str(model.folder.path), str(path), "13"]
    assert subprocess.run(call, env=environment, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    kept = read(path)
    assert len(greedy(kept)) == 7 and 0 < len(kept) - 7 < 2 * SAMPLED
    made = ask(model, path, Sampling(2), size=1)
    assert said(made) == said(ask(model, tmp_path / "whole.jsonl", Sampling(2)))
    keys = [tuple(json.loads(line)[key] for key in ("set", "id", "sample")) for line in path.read_bytes().splitlines()]
    assert sorted(keys) == sorted(t.key for t in made) and len(set(keys)) == len(keys)


def test_a_file_without_samples_holds_greedy_replies(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"set": "s", "id": "1", "prompt": "q", "response": "r"}) + "\n")
    (old,) = read(tmp_path / "t.jsonl")
    assert old.sample == 0 and greedy([old]) == [old] and samples_of([old]) == {}


def test_hostile_names_get_numbers_too_and_no_two_share_them() -> None:
    group = PromptSet("s", tuple(Prompt(name, "q", facts=FACTS) for name in (NASTY, "1", "1\x001", "p\x00")))
    asked = [one for one in Sampling(11).asked([group]) if one.sample]
    keys = {Sampling(11).draw(one).key for one in asked} | {Sampling(11, 1).draw(one).key for one in asked}
    assert len(keys) == 2 * len(asked) == 88
    assert len({Sampling(11).draw(one).number(0) for one in asked}) == 44


@pytest.fixture
def server() -> Iterator[StandIn]:
    with running(StandIn()) as made:
        yield made


def test_a_server_is_asked_for_each_sample_with_its_own_seed(server: StandIn, tmp_path: Path) -> None:
    for extra in ({}, {"repetition_penalty": 1.0}):
        server.asked = []
        path = tmp_path / f"{len(extra)}.jsonl"
        made = Asking(Server(server.url), Served("tiny", extra=extra), 16, sampling=Sampling(2)).answer(SETS, path)
        assert len(made) == 7 + 2 * SAMPLED == len(set(read(path)))
        bodies = [body for _, body, _ in server.asked]
        sampled = [body for body in bodies if body["temperature"] == 1.0]
        assert len(sampled) == 2 * SAMPLED == len({body["seed"] for body in sampled}) and all(body["top_p"] == 1.0 for body in sampled)
        assert all(0 <= body["seed"] < 2**31 for body in sampled)
        assert all(("top_k" in body) is bool(extra) for body in sampled)  # fields beyond OpenAI's only where they are accepted
        assert all(body["temperature"] == 0 and "top_p" not in body for body in bodies if body not in sampled)


def test_a_server_is_asked_again_only_for_the_samples_that_are_missing(server: StandIn, tmp_path: Path) -> None:
    asking, path = Asking(Server(server.url), Served("tiny"), 16, sampling=Sampling(2)), tmp_path / "t.jsonl"
    whole = asking.answer(SETS, path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]) + lines[3] + lines[10][:20])  # doubled, and cut
    server.asked = []
    assert asking.answer(SETS, path) == whole
    assert len(server.asked) == len(whole) - 9 and len(read(path)) == len(whole) == len({t.key for t in read(path)})
