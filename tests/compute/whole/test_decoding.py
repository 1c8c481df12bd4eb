"""Replies are transformers' own greedy ones on every family, whoever leaves, enters, or runs out of memory meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, OTHERS, VISION
from held import held, logits, replies, shapes_seen, streams, with_reuse

from abliterate.compute.at_once import AtOnce, at_once
from abliterate.compute.passes import Intervention, Pass
from abliterate.compute.session import Session
from abliterate.compute.whole.decoding import Decoding, DecodingSettings
from abliterate.compute.whole.model import WholeModel
from abliterate.compute.whole.reuse import Reuse
from abliterate.config import ModelConfig
from abliterate.errors import InputError
from abliterate.model.edit import edit_from_direction

CASES = {str(case): case for case in [*FAMILIES, *OTHERS]} | {str(case): case for case, _ in VISION}
# Plain attention; windows; positions that are learned, rotated, added; experts; linear attention and state spaces; indexed and
# compressed caches; inside vision-language models.
CHOSEN = [
    "llama", "qwen2", "qwen3_moe", "gemma2", "gemma3_text", "gemma4_text", "gpt2", "gpt_neox-parallel", "bloom", "falcon",
    "falcon-sequential", "gpt_oss", "deepseek_v3", "cohere2", "exaone4", "llama4_text", "mistral", "phi", "minimax_m2", "mimo_v2_flash",
    "bamba", "falcon_h1", "jamba", "lfm2", "nemotron_h", "qwen3_next", "glm_moe_dsa", "deepseek_v4", "gemma3", "qwen2_vl",
]  # fmt: skip
ONLY_LEAVE = {"bamba", "falcon_h1", "jamba", "lfm2", "nemotron_h", "qwen3_next"}
BY_TRANSFORMERS = {"glm_moe_dsa", "deepseek_v4"}
SYSTEM = [7, 3, 9, 4, 11, 6]
TOKENS = 6
NEVER = frozenset[int]()


def prompts(count: int, seed: int = 1, system: Sequence[int] = SYSTEM) -> list[list[int]]:
    draw = random.Random(seed)
    return [[*system, *(draw.randrange(3, 96) for _ in range(draw.randrange(1, 9)))] for _ in range(count)]


def generated(model: WholeModel, sequences: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """What transformers says to each prompt alone."""
    made = []
    for ids in sequences:
        row = torch.tensor([list(ids)])
        out = model.module.generate(  # type: ignore[operator]
            input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        made.append(out[0, len(ids) :].tolist())
    return made


@pytest.fixture(scope="module")
def llama() -> WholeModel:
    return held(CASES["llama"], batch_size=3)


@pytest.mark.parametrize("name", CHOSEN)
def test_replies_are_those_of_transformers(name: str) -> None:
    model = held(CASES[name], batch_size=3)
    assert (model.reuse.refills, model.reuse.leaves) == (
        name not in ONLY_LEAVE | BY_TRANSFORMERS,
        name not in BY_TRANSFORMERS,
    )
    asked = prompts(7)
    assert replies(model, Pass(asked), TOKENS) == generated(model, asked, TOKENS)


@pytest.mark.parametrize("name", ["gpt_oss", "gemma3_text", "mistral"])
def test_where_places_may_be_taken_again_windows_are_heeded_still(name: str) -> None:
    model = held(CASES[name], batch_size=3)
    model.module.config.sliding_window = 8
    short = [[5, 6, 7], [5, 8], [5, 9, 10], [5, 6]]
    for asked in (short, prompts(6, system=[*SYSTEM, *SYSTEM])):
        assert replies(model, Pass(asked), 3) == generated(model, asked, 3)


def endings(model: WholeModel, asked: Sequence[Sequence[int]], tokens: int) -> frozenset[int]:
    """Tokens that end some of the replies early, at different times."""
    free = generated(model, asked, tokens)
    return frozenset(reply[2 + i] for i, reply in enumerate(free[:: max(1, len(free) // 4)]) if 2 + i < tokens)


def manner(ends: frozenset[int] = NEVER, rows: int = 3, longest: int = 12, **fields: Any) -> DecodingSettings:
    return DecodingSettings(0, ends, longest, AtOnce(rows, 1000, 1000), **fields)


def written(model: WholeModel, how: DecodingSettings, asked: Sequence[Sequence[int]]) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    with torch.inference_mode():
        for index, reply in Decoding(model.module, how, asked).replies():
            assert index not in found
            found[index] = reply
    return [found[i] for i in range(len(asked))]


def until(reply: list[int], ends: frozenset[int]) -> list[int]:
    return reply[: next((i for i, token in enumerate(reply) if token in ends), len(reply))]


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("slack", [1, 3, 32])
def test_whoever_leaves_and_enters_each_reply_is_its_own(llama: WholeModel, rows: int, shares: bool, slack: int) -> None:
    asked = prompts(17, seed=2)
    ends = endings(llama, asked, 12)
    expected = [until(reply, ends) for reply in generated(llama, asked, 12)]
    assert len({len(reply) for reply in expected}) > 3
    assert written(llama, manner(ends, rows, shares=shares, slack=slack), asked) == expected


def test_rows_that_only_leave_reply_the_same(llama: WholeModel) -> None:
    asked = prompts(11, seed=2)
    ends = endings(llama, asked, 12)
    expected = [until(reply, ends) for reply in generated(llama, asked, 12)]
    assert written(llama, manner(ends, refills=False, shares=False), asked) == expected


def steps(seen: Sequence[tuple[int, int]]) -> list[int]:
    """How many rows were computed in each step that adds one token."""
    return [rows for rows, width in seen if width == 1]


def test_a_row_that_is_done_is_not_computed_any_more_and_its_place_is_taken(llama: WholeModel) -> None:
    asked = prompts(12, seed=2)
    asked = [ids if len(ids) - len(SYSTEM) > 1 else [*ids, 50] for ids in asked]  # so that a step of one token is a step
    ends = endings(llama, asked, 12)
    lengths = [len(until(reply, ends)) for reply in generated(llama, asked, 12)]
    with shapes_seen(llama) as seen:
        written(llama, manner(ends, shares=False), asked)
    # Each row is computed once for every token but its first, which its prompt gives, until its end is said.
    assert sum(steps(seen)) == sum(min(length, 11) for length in lengths)
    assert max(steps(seen)) == 3
    with shapes_seen(llama) as left:
        written(llama, manner(ends, refills=False, shares=False), asked)
    assert sum(steps(left)) == sum(steps(seen)) and len(steps(left)) > len(steps(seen))


def test_a_shared_prefix_is_not_computed_for_each_prompt(llama: WholeModel) -> None:
    asked = prompts(12, seed=2)
    with shapes_seen(llama) as seen:
        written(llama, manner(longest=2), asked)
    assert seen[0] == (1, len(SYSTEM))
    assert sum(rows for rows, width in seen[1:] if width > 1) <= len(asked) and max(width for _, width in seen[1:]) <= 8


def test_prompts_enter_in_parts_that_fit(llama: WholeModel) -> None:
    asked = prompts(12, seed=2)
    how = replace(manner(rows=12), at_once=AtOnce(12, 1000, 16))
    with shapes_seen(llama) as seen:
        found = written(llama, how, asked)
    assert max(rows * width for rows, width in seen[1:]) <= 16
    assert found == generated(llama, asked, 12)


def test_replies_under_a_change_are_those_of_the_changed_model(llama: WholeModel, unit_direction: Any) -> None:
    d, layers = llama.folder.d_model, llama.folder.layers
    asked = prompts(5)
    intervention = Intervention(edit_from_direction(unit_direction(d), layers), 2 * unit_direction(d, 2), 0)
    found = replies(llama, Pass(asked, intervention), TOKENS)
    for ids, reply in zip(asked, found, strict=True):
        scores = logits(with_reuse(llama, Reuse()), Pass([[*ids, *reply]], intervention, TOKENS + 1))[0]
        assert scores[:TOKENS].argmax(-1).tolist() == reply
    assert found != replies(llama, Pass(asked), TOKENS)
    assert not any(module._forward_hooks for module in llama.module.modules())


# --- replies that are settled ---


@pytest.mark.parametrize("reuse", [None, Reuse(leaves=True), Reuse()], ids=["refills", "leaves", "by transformers"])
def test_a_settled_reply_ends_when_it_is_looked_at_and_no_other_does(llama: WholeModel, reuse: Reuse | None) -> None:
    asked = prompts(7)
    model = llama if reuse is None else with_reuse(llama, reuse)
    free = replies(model, Pass(asked), 20)
    some = {tuple(asked[1]), tuple(asked[4])}
    found = replies(model, Pass(asked, settled=lambda ids, reply: tuple(ids) in some and len(reply) > 8), 20)
    assert found == [reply[:16] if tuple(ids) in some else reply for ids, reply in zip(asked, free, strict=True)]


# --- memory that runs out ---


@contextmanager
def room_for(model: WholeModel, rows: int, error: type[RuntimeError] = torch.OutOfMemoryError, say: str = "") -> Iterator[list[int]]:
    """A model that has no memory for more rows than this at once. How many it was asked for when it had not."""
    failed: list[int] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        asked = (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).shape[0]
        if asked > rows:
            failed.append(asked)
            raise error(say)

    handle = model.module.base_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield failed
    finally:
        handle.remove()


LACK = [(torch.OutOfMemoryError, "CUDA out of memory"), (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried ...")]


@pytest.mark.parametrize(("error", "say"), LACK, ids=["cuda", "cpu"])
@pytest.mark.parametrize("reuse", [None, Reuse(leaves=True), Reuse()], ids=["refills", "leaves", "by transformers"])
def test_no_reply_is_lost_or_doubled_when_memory_runs_out(reuse: Reuse | None, error: type[RuntimeError], say: str) -> None:
    model = held(CASES["llama"], batch_size=8)
    model = model if reuse is None else with_reuse(model, reuse)
    asked = prompts(13)
    expected = generated(model, asked, TOKENS)
    with room_for(model, 3, error, say) as failed:
        assert replies(model, Pass(asked), TOKENS) == expected
        assert failed == [8, 4]
        failed.clear()
        assert replies(model, Pass(asked), TOKENS) == expected
    assert failed == []  # what was too much is not tried again


@pytest.mark.parametrize("failing", range(2, 20, 3))
def test_memory_that_runs_out_in_the_middle_of_replies_loses_none(llama: WholeModel, failing: int) -> None:
    asked = prompts(17, seed=2)
    ends = endings(llama, asked, 12)
    expected = [until(reply, ends) for reply in generated(llama, asked, 12)]
    passes, how = iter(range(1000)), manner(ends, rows=6)

    def look(module: Any, args: Any, kwargs: Any) -> None:
        if next(passes) in (failing, failing + 5):
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = llama.module.base_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        assert written(llama, how, asked) == expected
    finally:
        handle.remove()
    assert how.at_once.rows == 1


def test_rows_that_were_moved_begin_again_with_all_their_tokens(llama: WholeModel) -> None:
    asked = [[*SYSTEM, *range(30, 30 + own)] for own in (9, 8, 7, 6, 5, 4, 2)]
    how = manner(rows=6, pace=1)
    passes = iter(range(1000))

    def look(module: Any, args: Any, kwargs: Any) -> None:
        if next(passes) == 5:  # the longest has left, and the shortest of the others has its place
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = llama.module.base_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        found = dict(Decoding(llama.module, how, asked, lambda ids, reply: ids == asked[0] and len(reply) == 2).replies())
    finally:
        handle.remove()
    whole = generated(llama, asked, 12)
    assert [found[i] for i in range(7)] == [whole[0][:2], *whole[1:]]


def test_streams_and_logits_are_told_once_when_memory_runs_out(llama: WholeModel) -> None:
    model, asked = replace(llama, batch_size=8), prompts(13)
    wanted, scores = streams(llama, [Pass(asked)], 2)[0], logits(llama, Pass(asked))
    with room_for(model, 3) as failed:
        torch.testing.assert_close(streams(model, [Pass(asked)], 2)[0], wanted, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(logits(model, Pass(asked)), scores, atol=2e-5, rtol=1e-4)
    assert failed == [8, 4]


@pytest.mark.parametrize("reuse", [None, Reuse()], ids=["own", "by transformers"])
def test_memory_that_isnt_enough_for_one_row_is_said(llama: WholeModel, reuse: Reuse | None) -> None:
    model = replace(llama, batch_size=4)
    model = model if reuse is None else with_reuse(model, reuse)
    with room_for(model, 0, say="CUDA out of memory"):
        for ask in (lambda: replies(model, Pass(prompts(3, system=[])), 2), lambda: streams(model, [Pass(prompts(3, system=[]))], 1)):
            with pytest.raises(torch.OutOfMemoryError):
                ask()
    assert not any(module._forward_hooks for module in llama.module.modules())


def test_another_error_is_not_taken_for_a_lack_of_memory(llama: WholeModel) -> None:
    with room_for(llama, 2, RuntimeError, "expected all tensors on one device") as failed, pytest.raises(RuntimeError, match="one device"):
        replies(llama, Pass(prompts(5)), 2)
    assert failed == [3]


# --- how much at once ---


def test_as_many_rows_as_memory_holds_and_no_more_than_are_fast() -> None:
    config = held(CASES["llama"]).folder.config
    cpu = torch.device("cpu")
    row = 2 * config.num_hidden_layers * config.hidden_size * 4 * 256
    assert at_once(7, config, cpu, 4, 0) == AtOnce(7, 7, 1 << 30)
    assert at_once(None, config, cpu, 4, 1000 * row).rows == at_once(None, config, cpu, 4, None).rows == 128
    assert [at_once(None, config, cpu, 4, rows * row).rows for rows in (70, 9, 1, 0)] == [64, 8, 1, 1]


def test_a_segment_is_several_times_what_is_answered_at_once(llama: WholeModel) -> None:
    assert llama.segment == 4 * 3
    assert replace(llama, batch_size=None, memory=0).segment == 4


def test_a_run_says_how_much_is_at_once_before_the_model_is_there(tiny: Callable[..., Path]) -> None:
    folder = tiny()

    def size(**settings: Any) -> int | None:
        session = Session(ModelConfig(model=str(folder), device="cpu", **settings), folder)
        found = session.batch_size
        assert "model" not in session.__dict__
        if session.holding.whole:
            assert isinstance(session.model, WholeModel) and session.model.at_once.rows == found
        return found

    assert size() == 128 and size(batch_size=7) == 7
    assert size(max_memory="16GiB") == 128
    with pytest.raises(InputError):
        size(max_memory="1KiB")
