"""Licences: which ones apply, and what they require of a derived model."""

from __future__ import annotations

import re

import pytest

from abliterate.checkpoint.records import Licence
from abliterate.report.licences import displayed, known, names_of, notices, refusals, terms_of


def stated(*ids: str, name: str | None = None, bases: tuple[str, ...] = ()) -> Licence:
    return Licence(ids=ids, name=name, link=None, files=(), bases=bases)


@pytest.mark.parametrize(
    ("base", "licence", "expected"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", stated("llama2"), ["llama2"]),
        ("meta-llama/Meta-Llama-3-8B-Instruct", stated("llama3"), ["llama3"]),
        ("meta-llama/Llama-3.1-8B-Instruct", stated("llama3.1"), ["llama3.1"]),
        ("meta-llama/Llama-3.3-70B-Instruct", stated("llama3.3"), ["llama3.3"]),
        ("meta-llama/Llama-4-Scout-17B-16E", stated("other", name="llama4"), ["llama4"]),
        ("deepseek-ai/DeepSeek-R1", stated("mit"), ["mit"]),
        ("deepseek-ai/DeepSeek-V2", stated("other", name="deepseek"), ["deepseek"]),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", stated("mit"), ["llama3.1", "mit"]),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", stated("mit"), ["llama3.3", "mit"]),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", stated("mit"), ["mit"]),
        ("Qwen/Qwen2.5-72B-Instruct", stated("other", name="qwen"), ["qwen"]),
        ("Qwen/Qwen2.5-3B", stated("other", name="qwen-research"), ["qwen-research"]),
        ("Qwen/Qwen-72B", stated("other", name="tongyi-qianwen-license-agreement"), ["tongyi-qianwen"]),
        ("Qwen/Qwen3-8B", stated("apache-2.0"), ["apache-2.0"]),
        ("google/gemma-2-2b-it", stated("gemma"), ["gemma"]),
        ("google/gemma-4-E4B-it", stated("apache-2.0"), ["apache-2.0"]),
        ("mistralai/Mistral-Large-Instruct-2407", stated("other", name="mrl"), ["mrl"]),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", stated("apache-2.0"), ["apache-2.0"]),
        ("openlm-research/open_llama_3b", stated("apache-2.0"), ["apache-2.0"]),
        ("someone/fine-tune", stated("apache-2.0", bases=("meta-llama/Llama-3.2-1B",)), ["llama3.2", "apache-2.0"]),
        ("someone/merge", stated(bases=("google/gemma-3-4b-it", "org/other")), ["gemma"]),
        ("org/model", stated("some-licence-nobody-knows"), []),
        ("org/model", None, []),
    ],
)
def test_a_licence_is_known_by_its_card_or_by_what_the_model_was_made_from(base: str, licence: Licence | None, expected: list[str]) -> None:
    assert [terms.id for terms in terms_of(licence, base)] == expected


@pytest.mark.parametrize(
    ("licence", "name", "clause"),
    [
        ("llama3.1", "my-llama", "section 1.b.i"),
        ("llama3.1", "abliterated-Llama-3.1", "section 1.b.i"),
        ("llama3", "Llama-8B", "“Llama 3”"),
        ("llama4", "scout", "section 1.b.i"),
    ],
)
def test_a_name_that_begins_otherwise_is_refused_with_the_clause(licence: str, name: str, clause: str) -> None:
    (refusal,) = refusals(terms_of(stated(licence), "b"), name, ["LICENSE"])
    assert clause in refusal and name in refusal


@pytest.mark.parametrize(
    ("licence", "name"),
    [
        ("llama3.1", "Llama-3.1-8B-x"),
        ("llama3.3", "llama-x"),
        ("llama3", "Llama-3-8B-x"),
        ("llama3", "Llama3-x"),
        ("llama2", "x"),
        ("mit", "x"),
    ],
)
def test_a_name_that_begins_as_asked_is_not(licence: str, name: str) -> None:
    assert list(refusals(terms_of(stated(licence), "b"), name, ["LICENSE.txt"])) == []


def test_an_agreement_must_go_along_and_a_free_licences_text_may() -> None:
    for terms in known():
        found = list(refusals([terms], "Llama-3-x", []))
        assert bool(found) == (terms.id not in ("apache-2.0", "mit")), terms.id
        assert all(str(terms.copy) in line and terms.link in line for line in found)


def test_what_must_be_displayed_and_noticed_follows_the_licence() -> None:
    assert displayed(terms_of(stated("llama3"), "b")) == ["Built with Meta Llama 3"]
    assert displayed(terms_of(stated("llama3.2"), "b")) == ["Built with Llama"]
    assert displayed(terms_of(stated("other", name="qwen"), "b")) == ["Built with Qwen"]
    assert notices(terms_of(stated("gemma"), "b"))[0].startswith("Gemma is provided under")
    assert displayed(terms_of(stated("mit"), "b")) == notices(terms_of(stated("mit"), "b")) == []


def test_the_table_names_each_licence_once_and_its_patterns_are_patterns() -> None:
    names = [name for terms in known() for name in (terms.id, *terms.also)]
    assert sorted(set(names)) == sorted(names)
    assert all(re.compile(pattern) for terms in known() for pattern in terms.models)


def test_a_licence_is_called_by_its_own_name_beside_other() -> None:
    assert names_of(stated("other", name="qwen-research")) == ["qwen-research"]
    assert names_of(stated("unknown")) == names_of(stated()) == names_of(None) == []
    assert names_of(stated("other")) == ["other"]
