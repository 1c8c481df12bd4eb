"""One pass over the prompts tells what three would: their streams, the replies, and what the model predicts along these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import save_tiny
from held import with_reuse
from torch import Tensor

from abliterate.choice.tuning.examples import CONTINUED, Examples, examples_of
from abliterate.choice.tuning.probe import Probe, predicted, probe_of
from abliterate.choice.tuning.probed import heard, save_heard
from abliterate.choice.tuning.replies import nothing, short
from abliterate.compute.passes import Pass
from abliterate.compute.whole import decoding
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.compute.whole.reuse import Reuse
from abliterate.directions.collect import Group, collect
from abliterate.measures.predictions import KEPT, Predicted, Predictions, Texts, ask
from abliterate.model.chat.template import encode
from abliterate.prompts import Prompt
from abliterate.runs.resume import NO_STORE, ResumeStore

WORDS = ["red", "a green one", "blue", "why is grey grey", "pink", "no"]
LAST, LONGEST, ALONG = 3, 12, 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    return load_model(save_tiny(Path(tmp_path_factory.mktemp("probe")) / "m"), "float32", "cpu", batch_size=4)


@pytest.fixture(scope="module")
def prompts(model: WholeModel) -> list[list[int]]:
    return encode(model.tokenizer, WORDS)


def streams(model: WholeModel | Probe, passes: Sequence[Pass]) -> dict[tuple[int, int, int], Tensor]:
    found: dict[tuple[int, int, int], Tensor] = {}

    def seen(number: int, indices: Sequence[int], index: int, stream: Tensor) -> None:
        for row, which in enumerate(indices):
            assert (number, which, index) not in found, "told twice"
            found[number, which, index] = stream[row]

    model.watch(passes, LAST, seen)
    return found


def test_streams_replies_and_predictions_are_those_of_three_passes(model: WholeModel, prompts: list[list[int]]) -> None:
    probe = Probe(model, LONGEST, ALONG)
    passes = [Pass(prompts[:4]), Pass(prompts[4:])]
    found, wanted = streams(probe, passes), streams(model, passes)
    assert found.keys() == wanted.keys()
    for place, stream in wanted.items():
        torch.testing.assert_close(found[place], stream, atol=2e-5, rtol=1e-4)
    replies: dict[int, list[int]] = {}
    for _, indices, made in model.replies([Pass(prompts)], LONGEST):
        replies |= dict(zip(indices, made, strict=True))
    said = [probe.said[tuple(ids)] for ids in prompts]
    assert [each.reply for each in said] == [replies[i] for i in range(len(prompts))]
    along = [(replies[i] or nothing(model))[:ALONG] for i in range(len(prompts))]
    hearer = Predictions(model, Texts(prompts, along, []))
    ask(model, [hearer])
    assert_same(predicted(said), hearer.found)
    assert predicted(said).tokens.shape[1] == min(KEPT, model.folder.config.vocab_size)


def assert_same(found: Predicted, wanted: Predicted) -> None:
    assert found.starts.tolist() == wanted.starts.tolist()
    torch.testing.assert_close(found.nats, wanted.nats, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.logprobs, wanted.logprobs, atol=1e-4, rtol=1e-4)
    order = [each.tokens.long().argsort(-1) for each in (found, wanted)]  # where two are as likely, rounding says which comes first
    both = [each.logprobs.gather(-1, by) for each, by in zip((found, wanted), order, strict=True)]
    torch.testing.assert_close(*both, atol=1e-4, rtol=1e-4)


def test_prompts_that_play_two_roles_are_asked_once_and_told_of_twice(model: WholeModel, prompts: list[list[int]]) -> None:
    probe, asked = Probe(model, 2, 1), []
    real = model.module.forward
    model.module.forward = lambda *args, **kwargs: (asked.append(len(kwargs["input_ids"])), real(*args, **kwargs))[1]  # type: ignore[method-assign]
    try:
        found = streams(probe, [Pass(prompts[:2]), Pass(prompts[:2])])
    finally:
        model.module.forward = real  # type: ignore[method-assign]
    assert sum(asked) <= 2 * len(prompts[:2])
    for which in range(2):
        for index in range(model.folder.layers + 1):
            assert torch.equal(found[0, which, index], found[1, which, index])


def test_statistics_are_the_same_by_either_way(model: WholeModel, prompts: list[list[int]]) -> None:
    groups = {"target": Group(prompts[:3], {"some": [0, 2]}, 2), "baseline": Group(prompts[3:])}
    found, wanted = collect(Probe(model, 4, 1), groups, LAST), collect(model, groups, LAST)
    assert found.keys() == wanted.keys()
    for name, each in wanted.items():
        torch.testing.assert_close(found[name].mean, each.mean, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found[name].vectors, each.vectors, atol=2e-5, rtol=1e-4)


def test_where_memory_runs_out_each_prompt_is_told_of_once(
    model: WholeModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = streams(Probe(model, LONGEST, ALONG), [Pass(prompts)])
    real, failed = decoding.Decoding._step, []

    def step(self: decoding.Decoding) -> None:
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError
        real(self)

    monkeypatch.setattr(decoding.Decoding, "_step", step)
    found = streams(Probe(replace(model), LONGEST, ALONG), [Pass(prompts)])
    assert failed and found.keys() == wanted.keys()


def test_a_model_whose_replies_transformers_writes_has_no_probe(model: WholeModel, prompts: list[list[int]]) -> None:
    assert probe_of(with_reuse(model, Reuse()), prompts, LONGEST, ALONG) is None
    assert probe_of(model, prompts, LONGEST, ALONG) is not None


ROLES = ("target", "baseline", "harmless", "keep")
PROMPTS = {role: [Prompt(f"{role}-{i}", f"{text} {role}", "en") for i, text in enumerate(WORDS)] for role in ROLES}


def asked_of(model: WholeModel) -> Probe:
    probe = Probe(model, short(model.tokenizer), CONTINUED)
    collect(probe, {role: Group(encode(model.tokenizer, [p.text for p in each])) for role, each in PROMPTS.items()}, 1)
    return probe


def told(examples: Examples) -> list[object]:
    return [examples.target, examples.others, {role: stay.asked for role, stay in examples.stays.items()}]


def test_examples_are_the_same_of_what_was_heard_and_of_what_is_asked(model: WholeModel, tmp_path: Path) -> None:
    kept = ResumeStore(tmp_path / "kept", "x")
    save_heard(kept, "val", PROMPTS, asked_of(model))
    replies, along = heard(kept, "val")
    assert set(replies) == set(PROMPTS) and set(along) == {"baseline", "harmless", "keep"}
    counted: list[float] = []
    found, wanted = examples_of(model, PROMPTS, counted.append, replies, along), examples_of(model, PROMPTS)
    assert told(found) == told(wanted) and not counted
    for role, stay in wanted.stays.items():
        assert_same(found.stays[role].predicted, stay.predicted)


def test_of_roles_that_were_not_asked_nothing_is_kept(model: WholeModel, tmp_path: Path) -> None:
    kept, more = ResumeStore(tmp_path / "kept", "x"), PROMPTS | {"harmless": [Prompt("h", "something else", "en")]}
    save_heard(kept, "val", more, asked_of(model))
    replies, along = heard(kept, "val")
    assert set(replies) == {"target", "baseline", "keep"} and set(along) == {"baseline", "keep"}
    assert heard(kept, "train") == ({}, {}) and heard(NO_STORE, "val") == ({}, {})
