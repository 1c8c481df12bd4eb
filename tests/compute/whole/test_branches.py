"""Several replies to one prompt: the prompt goes through the model once, and every logit is that of the whole sequence by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, VISION
from held import held, logits, shapes_seen, with_reuse
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.compute.passes import Intervention, Pass
from abliterate.compute.prefix import only_attends, shared_prefix
from abliterate.compute.whole import reuse
from abliterate.compute.whole.branches import branches
from abliterate.compute.whole.model import WholeModel
from abliterate.compute.whole.reuse import Reuse, reuse_of
from abliterate.model.edit import edit_from_direction

SYSTEM = [5, 6, 7, 8, 9, 11]
STEMS = [[*SYSTEM, *(30 + (7 * n + i) % 60 for i in range(length))] for n, length in enumerate((5, 3, 6))]
TAILS = [[12, 13], [14, 15], [12, 16], [17, 13]]
SEQUENCES = [[*stem, *tail] for tail in TAILS for stem in STEMS]
KEPT = 3
CASES = {str(case): case for case in [*FAMILIES, *(case for case, _ in VISION)]}
CHOSEN = ["llama", "qwen2", "gemma2", "gpt2", "bloom", "falcon", "gpt_oss", "deepseek_v3", "cohere2", "gemma4_text", "phi", "qwen2_vl"]
OTHER_STATE = ["jamba", "qwen3_next", "lfm2"]

IDS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=9)


@pytest.fixture(scope="module")
def llama() -> WholeModel:
    return held(CASES["llama"], batch_size=3)


@settings(max_examples=300, deadline=None)
@given(IDS, st.integers(1, 4), st.integers(0, 2))
def test_stems_and_tails_are_the_sequences(sequences: list[list[int]], kept: int, shared: int) -> None:
    found = branches(sequences, kept, shared)
    if found is None:
        return
    assert [[*found.stems[stem], *tail] for stem, tail in zip(found.of, found.tails, strict=True)] == sequences
    assert len({tuple(stem) for stem in found.stems}) == len(found.stems) and {len(tail) for tail in found.tails} == {kept - 1}
    assert all(len(stem) > shared for stem in found.stems)
    assert sorted(i for stem in range(len(found.stems)) for i in found.from_stems([stem])) == list(range(len(sequences)))
    tokens = sum(len(stem) - shared for stem in found.stems) + sum(map(len, found.tails))
    assert tokens <= 0.75 * sum(len(ids) - shared for ids in sequences)


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("size", [None, 2])
def test_logits_are_those_of_each_sequence_by_itself(name: str, size: int | None) -> None:
    model = held(CASES[name], batch_size=size)
    assert model.reuse.branches
    asked = Pass(SEQUENCES, kept=KEPT)
    if not only_attends(model.folder.config, max(map(len, SEQUENCES))):  # a window is shorter
        asked = Pass([[*SYSTEM[:4], *own, last] for own in ([20, 21, 22], [23, 24]) for last in range(30, 36)], kept=2)
    with shapes_seen(model) as seen:
        found = logits(model, asked)
    shared = shared_prefix(asked.sequences)
    whole = shared + sum(len(ids) - shared for ids in asked.sequences)
    assert sum(rows * width for rows, width in seen) < 0.75 * whole, "no prompt was computed twice"
    wanted = logits(with_reuse(model, Reuse()), asked)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


@pytest.mark.parametrize("name", OTHER_STATE)
def test_an_architecture_with_a_state_of_another_kind_computes_each_whole(name: str) -> None:
    model = held(CASES[name])
    assert not model.reuse.branches
    with shapes_seen(model) as seen:
        found = logits(model, Pass(SEQUENCES, kept=KEPT))
    assert torch.isfinite(found).all() and sum(rows for rows, _ in seen) == len(SEQUENCES)


def test_a_stem_is_computed_under_the_change_of_its_pass(llama: WholeModel, unit_direction: Any) -> None:
    d, layers = llama.folder.d_model, llama.folder.layers
    interventions = [
        Intervention(),
        Intervention(edit_from_direction(unit_direction(d), layers, policy="edit")),
        Intervention(shift=3 * unit_direction(d, 2)),
    ]
    for intervention in interventions:
        asked = Pass(SEQUENCES, intervention, KEPT)
        torch.testing.assert_close(logits(llama, asked), logits(with_reuse(llama, Reuse()), asked), atol=2e-5, rtol=1e-4)
    assert not any(module._forward_hooks for module in llama.module.modules())


def test_tails_of_several_lengths_part_where_the_longest_begins(llama: WholeModel) -> None:
    sequences = [[*stem, *tail[: 1 + number % 2]] for number, tail in enumerate(TAILS) for stem in STEMS]
    asked = Pass(sequences, kept=KEPT)
    assert branches(sequences, KEPT, len(SYSTEM)) is not None
    torch.testing.assert_close(logits(llama, asked), logits(with_reuse(llama, Reuse()), asked), atol=2e-5, rtol=1e-4)


def test_sequences_that_share_little_are_computed_whole(llama: WholeModel) -> None:
    assert branches([[*stem, *TAILS[0]] for stem in STEMS], KEPT) is None
    assert branches(SEQUENCES, 1) is None and branches([], KEPT) is None


def test_a_copy_that_is_off_turns_branching_off(monkeypatch: pytest.MonkeyPatch) -> None:
    real = reuse.grown_on

    def shifted(module: Any, stems: Any, chosen: Any, tails: Any) -> Any:
        return real(module, stems, [*chosen[1:], chosen[0]], tails)

    monkeypatch.setattr(reuse, "grown_on", shifted)
    monkeypatch.setattr(reuse, "_known", {})
    found = reuse_of(held(CASES["llama"]).folder)
    assert found.shares and not found.branches
