"""KL divergence of two rows of log-probabilities."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import save_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.measures.drift import base_predictions, bundled_prose, drift, load_base_predictions, save_base_predictions
from abliterate.measures.predictions import Divergences, Nats, Predicted, Predictions, Texts, ask, kl_divergence
from abliterate.model.chat.template import encode


def rows(seed: int, spread: float = 1.0) -> torch.Tensor:
    return (spread * torch.randn(5, 40, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 20.0))
def test_kl_is_never_negative(seed: int, spread: float) -> None:
    assert (kl_divergence(rows(seed, spread), rows(seed + 1, spread)) >= 0).all()


def test_kl_of_a_row_with_itself_is_zero() -> None:
    assert (kl_divergence(rows(1), rows(1)) == 0).all()


def test_kl_is_torchs() -> None:
    base, edited = rows(1), rows(2)
    expected = torch.nn.functional.kl_div(edited, base, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl_divergence(base, edited), expected, rtol=1e-5, atol=1e-6)


def test_kl_is_in_nats() -> None:
    certain, fair = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.5, 0.5]]).log()
    torch.testing.assert_close(kl_divergence(certain, fair), torch.tensor([math.log(2)]))


def test_kl_is_of_base_from_edited() -> None:
    certain, fair = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.5, 0.5]]).log()
    assert kl_divergence(fair, certain).isinf().all()


def test_small_kl_of_a_wide_vocabulary_is_not_lost_to_rounding() -> None:
    base = torch.randn(1, 150_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    edited = (base + 1e-3 * torch.randn(base.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).log_softmax(-1)
    exact = (base.exp() * (base - edited)).sum(-1)
    torch.testing.assert_close(kl_divergence(base.float(), edited.float()).double(), exact, rtol=0.05, atol=0)


# --- along texts ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[WholeModel, WholeModel]:
    folder = tmp_path_factory.mktemp("drift")
    return tuple(load_model(save_tiny(folder / str(seed), layers=2, seed=seed), device="cpu") for seed in (1, 2))  # type: ignore[return-value]


def logprobs(model: WholeModel, prompt: list[int], text: list[int]) -> torch.Tensor:
    """What the text's tokens are chosen from, one row each."""
    with torch.inference_mode():
        logits = model.module(torch.tensor([[*prompt, *text]])).logits[0].double()
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def predicted(model: WholeModel, texts: Texts) -> Predicted:
    ask(model, [heard := Predictions(model, texts)])
    return heard.found


def divergence(model: WholeModel, base: Predicted, texts: Texts) -> tuple[torch.Tensor, torch.Tensor]:
    ask(model, [heard := Divergences(base, texts)])
    return heard.kl, heard.nats


def test_kl_along_the_bases_replies_is_the_mean_over_their_tokens(models: tuple[WholeModel, WholeModel]) -> None:
    base, edited = models
    prompts = encode(base.tokenizer, ["Hi", "What is that?", "Sing"])
    replies = [base.tokenizer(text)["input_ids"] for text in ("a short one", "", "and one that is quite a bit longer")]
    texts = Texts(prompts, replies, [])
    kept = predicted(base, texts)
    kl, nats = divergence(edited, kept, texts)
    for i in (0, 2):
        p, q = logprobs(base, prompts[i], replies[i]), logprobs(edited, prompts[i], replies[i])
        exact = (p.exp() * (p - q)).sum(-1).mean()
        torch.testing.assert_close(kl[i].double(), exact, rtol=1e-4, atol=1e-5)
        own = torch.tensor(replies[i])[:, None]
        torch.testing.assert_close(kept.nats[i].double(), -p.gather(-1, own).mean(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(nats[i].double(), -q.gather(-1, own).mean(), rtol=1e-4, atol=1e-5)
    assert kl[1].isnan() and nats[1].isnan()


def test_what_is_lumped_together_never_adds_to_the_divergence(
    models: tuple[WholeModel, WholeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, edited = models
    texts = Texts(encode(base.tokenizer, ["Hi"]), [base.tokenizer("some reply")["input_ids"]], [])
    found = []
    for kept in (1, 4, 32, 1024):
        monkeypatch.setattr("abliterate.measures.predictions.KEPT", kept)
        found.append(float(divergence(edited, predicted(base, texts), texts)[0]))
    assert found == sorted(found) and 0 < found[0] < found[-1]


def test_prose_has_the_cross_entropy_of_a_plain_forward_pass(models: tuple[WholeModel, WholeModel]) -> None:
    base, _ = models
    texts = [base.tokenizer(text)["input_ids"] for text in ("The lake lies still.", "x", "湖面平静。")]
    ask(base, [heard := Nats(texts)])
    found = heard.nats
    for i in (0, 2):
        with torch.inference_mode():
            ids = torch.tensor([texts[i]])
            expected = base.module(ids, labels=ids).loss
        torch.testing.assert_close(found[i], expected.float(), rtol=1e-4, atol=1e-5)
    assert found[1].isnan()


def test_the_bases_side_comes_back_from_its_file_and_gives_the_same_drift(models: tuple[WholeModel, WholeModel], tmp_path: Path) -> None:
    base, edited = models
    texts = Texts(encode(base.tokenizer, ["Hi", "Why?"]), [[40, 41], []], [[50, 51, 52]])
    side = base_predictions(base, texts)
    save_base_predictions(side, tmp_path / "side.safetensors")
    found = drift(edited, load_base_predictions(tmp_path / "side.safetensors"), texts)
    assert found == drift(edited, side, texts)
    assert found.kl_sequence[1] is None and found.suppression_base is None
    assert found.ce_base != found.ce_edited
    same = drift(base, side, texts)
    assert max(same.kl_first_token) < 1e-9 and abs(same.kl_sequence[0] or 0) < 1e-6 and same.ce_base == same.ce_edited


def test_the_bundled_prose_is_in_every_language() -> None:
    prose = bundled_prose()
    chinese = [text for text in prose if any("\u4e00" <= c <= "\u9fff" for c in text)]
    assert len(prose) >= 60 and len(chinese) >= 20 and len(set(prose)) == len(prose)
