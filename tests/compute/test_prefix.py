"""What prompts begin with alike is computed once, and nothing but the time shows it; where that is not exact it is not done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import FAMILIES, VISION, Case
from held import held, logits, shapes_seen, streams, with_reuse
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.compute.hooks import changed
from abliterate.compute.passes import Intervention, Pass
from abliterate.compute.prefix import MIN_SHARED, computed, only_attends, prefix_length, shared_prefix
from abliterate.compute.whole import reuse
from abliterate.compute.whole.model import WholeModel
from abliterate.compute.whole.reuse import Reuse, reuse_of
from abliterate.model.edit import edit_from_direction

SYSTEM = [7, 3, 9, 4, 11, 6]
PROMPTS = [[*SYSTEM, *rest] for rest in ([20, 21, 22], [23, 24, 25, 26, 27, 28, 29], [20, 30, 31, 32], [40, 41, 42, 43, 44])]
IDS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=6)
# Every kind of attention, position and cache that layouts.toml knows.
CHOSEN = [
    "llama", "qwen2", "qwen3_moe", "gemma2", "gemma3_text", "gpt2", "gpt_neox-parallel", "bloom", "falcon", "falcon-sequential", "gpt_oss",
    "deepseek_v3", "cohere2", "exaone4", "llama4_text", "gemma4_text", "phi", "stablelm", "minimax_m2", "olmo3", "smollm3", "qwen2_vl",
    "mistral3",
]  # fmt: skip
OTHER_STATE = ["bamba", "falcon_h1", "jamba", "lfm2", "qwen3_next", "nemotron_h", "kimi_linear", "deepseek_v32", "deepseek_v4"]
CASES = {str(case): case for case in [*FAMILIES, *(case for case, _ in VISION)]}


@pytest.fixture(scope="module")
def llama() -> WholeModel:
    return held(CASES["llama"], batch_size=3)


def long(*lengths: int) -> list[list[int]]:
    return [[*SYSTEM, *(30 + (7 * n + i) % 60 for i in range(length))] for n, length in enumerate(lengths)]


@settings(max_examples=200, deadline=None)
@given(IDS)
def test_the_shared_prefix_is_the_longest_with_which_all_begin(sequences: list[list[int]]) -> None:
    length = shared_prefix(sequences)
    assert len({tuple(ids[:length]) for ids in sequences}) == 1
    assert any(len(ids) == length for ids in sequences) or len({ids[length] for ids in sequences}) > 1


@settings(max_examples=200, deadline=None)
@given(IDS, st.integers(1, 4))
def test_every_sequence_keeps_its_last_tokens_to_itself(sequences: list[list[int]], reach: int) -> None:
    length = prefix_length(sequences, reach)
    assert length == 0 or MIN_SHARED <= length <= min(shared_prefix(sequences), min(map(len, sequences)) - reach)


@pytest.mark.parametrize("name", CHOSEN)
def test_streams_and_logits_are_those_without_a_shared_prefix(name: str) -> None:
    model = held(CASES[name], batch_size=3)
    assert model.reuse.shares
    apart = with_reuse(model, Reuse())
    sequences = [ids[: len(SYSTEM) + 2] for ids in PROMPTS] if not only_attends(model.folder.config, 13) else PROMPTS
    with shapes_seen(model) as seen:
        found, wanted = streams(model, [Pass(sequences)], 2)[0], streams(apart, [Pass(sequences)], 2)[0]
    assert seen[0] == (1, len(SYSTEM)) and max(width for _, width in seen[1:3]) <= 7
    scale = wanted.abs().amax(dim=(0, 2, 3), keepdim=True)
    assert float(((found - wanted).abs() / scale).max()) < 1e-5
    asked = Pass(sequences, kept=2)
    wanted = logits(apart, asked)
    assert float((logits(model, asked) - wanted).abs().max() / wanted.abs().max()) < 1e-5


@pytest.mark.parametrize("name", OTHER_STATE)
def test_an_architecture_with_a_state_of_another_kind_shares_nothing(name: str) -> None:
    model = held(CASES[name])
    assert not model.reuse.shares and not model.reuse.refills
    with shapes_seen(model) as seen:
        assert torch.isfinite(streams(model, [Pass(PROMPTS)], 2)[0]).all()
    assert sum(rows for rows, _ in seen) == len(PROMPTS)


def test_the_prefix_is_computed_anew_under_each_change(llama: WholeModel, unit_direction: Any) -> None:
    d, layers = llama.folder.d_model, llama.folder.layers
    edit = edit_from_direction(unit_direction(d), layers, policy="edit")
    interventions = [Intervention(), Intervention(shift=3 * unit_direction(d, 2), shift_layer=0), Intervention(edit), Intervention()]
    passes = [Pass(PROMPTS, intervention) for intervention in interventions]
    found, wanted = streams(llama, passes, 2), streams(with_reuse(llama, Reuse()), passes, 2)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-2) and torch.equal(found[0], found[3])
    assert not any(module._forward_hooks for module in llama.module.modules())


@pytest.mark.parametrize("last", [1, 3, 5, 8, 9])
def test_the_positions_watched_are_never_within_the_prefix(llama: WholeModel, last: int) -> None:
    found, wanted = streams(llama, [Pass(PROMPTS)], last)[0], streams(with_reuse(llama, Reuse()), [Pass(PROMPTS)], last)[0]
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
    asked = Pass(PROMPTS, kept=last)
    torch.testing.assert_close(logits(llama, asked), logits(with_reuse(llama, Reuse()), asked), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("sequences", [[PROMPTS[0]] * 4, [SYSTEM, PROMPTS[0]], [[5, 6], [5, 7]], [PROMPTS[0]], []])
def test_sequences_that_leave_no_prefix_to_share_are_computed_whole(llama: WholeModel, sequences: list[list[int]]) -> None:
    found, wanted = streams(llama, [Pass(sequences)], 2)[0], streams(with_reuse(llama, Reuse()), [Pass(sequences)], 2)[0]
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt_oss", "llama4_text"])
def test_beyond_a_window_nothing_is_shared(name: str) -> None:
    model = held(CASES[name], batch_size=3)
    window, sequences = 8, long(4, 9, 6)
    assert only_attends(model.folder.config, window) and not only_attends(model.folder.config, window + 1)
    with shapes_seen(model) as seen:
        found = streams(model, [Pass(sequences)], 2)[0]
    assert sum(rows for rows, _ in seen) == len(sequences)
    for ids, own in zip(sequences, found, strict=True):
        alone = streams(with_reuse(model, Reuse()), [Pass([ids])], 2)[0][0]
        assert float((own - alone).abs().max() / alone.abs().max()) < 1e-5


def test_an_architecture_is_asked_once_and_a_copy_that_is_off_turns_sharing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = held(Case("qwen2", {"rope_theta": 12345.0})).folder
    real, asked = reuse.computed, []

    def shifted(module: Any, ids: Any) -> Any:
        asked.append(ids)
        prefix = real(module, ids)
        return replace(prefix, layers=[type(layer)(layer.keys.roll(1, 2), layer.values, layer.is_sliding) for layer in prefix.layers])

    monkeypatch.setattr(reuse, "computed", shifted)
    assert not reuse_of(folder).shares and reuse_of(folder).refills
    assert len(asked) == 1


def test_a_prefix_of_one_row_serves_as_many_rows_as_come(llama: WholeModel) -> None:
    with torch.inference_mode(), changed(llama, Intervention()):
        prefix = computed(llama.module, SYSTEM)
    assert prefix.length == len(SYSTEM)
    assert {tuple(layer.keys.shape[::2]) for layer in prefix.layers} == {(1, len(SYSTEM))}
