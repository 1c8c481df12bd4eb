"""How much of a reference comes back, along its own replies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import CHATML, byte_tokenizer, save_tiny

from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.errors import InputError
from abliterate.measures.predictions import Texts
from abliterate.measures.recovery import (
    RecoverySide,
    check_predicts_alike,
    divergences,
    ids_of,
    load_predicted,
    recovered,
    reference_side,
    save_predicted,
)
from abliterate.model.chat.template import encode


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[WholeModel, WholeModel]:
    folder = tmp_path_factory.mktemp("recovery")
    return tuple(load_model(save_tiny(folder / str(seed), layers=2, seed=seed), device="cpu") for seed in (1, 2))  # type: ignore[return-value]


def test_the_divergence_is_of_the_reference_from_the_model(models: tuple[WholeModel, WholeModel]) -> None:
    reference, model = models
    prompts = encode(reference.tokenizer, ["Hi", "Sing", "Why?"])
    texts = Texts(prompts, ids_of(reference.tokenizer, ["la la", "", "because it is so"]), [])
    found = divergences(model, reference_side(reference, texts), texts)
    with torch.inference_mode():
        ids = torch.tensor([[*prompts[2], *texts.replies[2]]])
        p, q = (m.module(ids).logits[0, len(prompts[2]) - 1 : -1].double().log_softmax(-1) for m in (reference, model))
    kl = (p.exp() * (p - q)).sum(-1)
    assert found.kl[2] == pytest.approx(float(kl.mean()), rel=1e-4) and found.first[2] == pytest.approx(float(kl[0]), rel=1e-4)
    assert found.kl[1] is None and found.first[1] is None and (found.kl[0] or 0) > 0
    assert divergences(reference, reference_side(reference, texts), texts).kl[0] == pytest.approx(0, abs=1e-6)


def test_what_the_reference_predicts_comes_back_from_its_file(models: tuple[WholeModel, WholeModel], tmp_path: Path) -> None:
    reference, model = models
    texts = Texts(encode(reference.tokenizer, ["Hi"]), ids_of(reference.tokenizer, ["la la"]), [])
    told = reference_side(reference, texts)
    save_predicted(told, tmp_path / "side.safetensors")
    assert divergences(model, load_predicted(tmp_path / "side.safetensors"), texts) == divergences(model, told, texts)


def test_of_a_reply_64_tokens_are_looked_at() -> None:
    (long,) = ids_of(byte_tokenizer(), ["x" * 100])
    assert len(long) == 64


def side(kl: list[float | None], *replies: list[int]) -> RecoverySide:
    return RecoverySide(kl, [None if value is None else 2 * value for value in kl], replies)


def test_what_is_gone_is_the_share_of_the_bases_divergence() -> None:
    entry = recovered("target", [[1, 2], [3]], side([1.0, 0.8], [9], [3]), side([0.1, 0.26], [1, 2], [3]))
    assert (entry.role, entry.n) == ("target", 2)
    assert entry.kl_base == pytest.approx(0.9) and entry.kl_edited == pytest.approx(0.18) and entry.gone == pytest.approx(0.8)
    assert entry.kl_first_base == pytest.approx(1.8) and entry.gone_first == pytest.approx(0.8)
    assert entry.agree_base.k == 1 and entry.agree_edited.rate == 1.0 and len(entry.agree_edited.ci95) == 2


def test_a_base_that_is_the_reference_has_nothing_that_could_go() -> None:
    entry = recovered("harmless", [[1]], side([0.0099], [1]), side([0.5], [2]))
    assert entry.gone is None and entry.kl_edited == 0.5
    assert recovered("harmless", [[1]], side([0.01], [1]), side([0.02], [2])).gone == pytest.approx(-1.0)


def test_prompts_to_which_the_reference_says_nothing_count_in_no_divergence() -> None:
    entry = recovered("target", [[], [3]], side([None, 0.5], [], [3]), side([None, 0.1], [1], [4]))
    assert (entry.kl_base, entry.kl_edited, entry.agree_base.k, entry.agree_edited.k) == (0.5, 0.1, 2, 0)
    assert recovered("target", [[]], side([None], []), side([None], [])).kl_base is None


def test_replies_agree_by_their_first_tokens_alone_and_a_shorter_one_does_not() -> None:
    reference = list(range(40))
    later, sooner, shorter = [*range(32), 99], [*range(31), 99], list(range(31))
    found = recovered("target", [reference] * 3, side([0.0] * 3, later, sooner, shorter), side([0.0] * 3, *[reference] * 3))
    assert found.agree_base.k == 1 and found.agree_edited.k == 3
    assert recovered("target", [reference], side([0.0], shorter), side([0.0], sooner), tokens=31).agree_edited.k == 1


def test_a_reference_must_know_the_same_tokens_and_be_asked_alike() -> None:
    plain = byte_tokenizer()
    check_predicts_alike("m", plain, byte_tokenizer(), (300, 300), ["Hi"])
    with pytest.raises(InputError, match=r"--reference m: its tokenizer maps .* to a different id"):
        check_predicts_alike("m", byte_tokenizer(bos="<s>"), plain, (300, 300), ["Hi"])
    with pytest.raises(InputError, match="--reference m: it predicts 320 tokens, the model 300"):
        check_predicts_alike("m", byte_tokenizer(), plain, (320, 300), ["Hi"])
    with pytest.raises(InputError, match="--reference m: its chat template"):
        check_predicts_alike("m", byte_tokenizer(CHATML + " So:"), plain, (300, 300), ["Hi"])
