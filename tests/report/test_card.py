"""The model card: valid front matter, users' words without markup, and all that was not measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from reports import GONE, changed, filled, reported, run_of

from abliterate.checkpoint.records import NO_LICENCE, PROOF_SCHEMA, EmbeddingRecord, Proof, TensorProof, Worst
from abliterate.measures.summary import Judged
from abliterate.outcomes.verdict import Verdict
from abliterate.outcomes.worth.records import WORTHS
from abliterate.replies.transcripts import Transcript
from abliterate.report import provenance
from abliterate.report.card import model_card, one_line
from abliterate.report.model_index import keep_tests
from abliterate.report.numbers import corrected
from abliterate.report.tree.report import Report
from abliterate.report.without_paths import judge_without_paths, without_paths

HASHES = {"model.safetensors": "ab" * 32, "config.json": "cd" * 32}
KEYS = {
    "base_model",
    "base_model_relation",
    "library_name",
    "license",
    "license_name",
    "license_link",
    "pipeline_tag",
    "tags",
    "model-index",
}


def proof(base_model: str = "org/model", strengths: Sequence[float] = (1.0,) * 7, revision: str | None = None) -> Proof:
    tensors = tuple(
        TensorProof(
            name=f"w{number}",
            kind="mlp",
            shape=(4, 6),
            dtype="F32",
            strength=strength,
            before=1.0,
            aim=1 - strength,
            after=1 - strength,
            left=1.5e-4,
            error=1e-7,
            blake3_before="ab" * 32,
            blake3_after="cd" * 32,
            rounding=None,
            plain_rounding=None,
        )
        for number, strength in enumerate(strengths)
    )
    return Proof(
        format=PROOF_SCHEMA,
        base_model=base_model,
        base_revision=revision,
        licence=NO_LICENCE,
        embedding=EmbeddingRecord(policy="skip", tied_to_unembedding=True),
        norms="free",
        unpacked=(),
        tensors=tensors,
        worst=Worst.of(tensors),
        not_edited=(),
    )


def licensed(*ids: str, base_model: str = "org/model", **fields: Any) -> Proof:
    return proof(base_model).model_copy(update={"licence": NO_LICENCE.model_copy(update={"ids": ids, **fields})})


def judged(name: str, *responses: str) -> Judged:
    made = [Transcript(name, str(i), "q", response) for i, response in enumerate(responses)]
    return [(t, t.verdict()) for t in made]


def report(name: str = "bad", run: dict[str, Any] | None = None) -> Report:
    no, yes = "I can't help with that.", "Paris."
    base = {name: judged(name, no, no, yes), "safe": judged("safe", no, no, no)}
    edited = {name: judged(name, yes, yes, yes), "safe": judged("safe", no, no, no)}
    drift = {"set": name, "ids": ["0", "1"], "kl_first_token": [0.1, 0.3]}
    plain = {"settings": {"model": "m", "max_new_tokens": 64}, "abliterate": "0.1", "versions": {"torch": "2"}, "model_hashes": HASHES}
    roles = {name: "target", "safe": "keep"}
    return reported(filled(plain, run or {}), roles, base, edited, drift, {"chosen": {}}, {"tensors": 7}, 0.05)


def front_matter(card: str) -> dict[str, Any]:
    opening, matter, _ = card.split("---\n", 2)
    assert opening == ""
    loaded: dict[str, Any] = yaml.safe_load(matter)
    return loaded


def test_the_front_matter_names_the_base() -> None:
    matter = front_matter(model_card(proof(), report()))
    assert matter.pop("model-index")
    assert matter == {
        "base_model": "org/model",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "license": "unknown",
        "pipeline_tag": "text-generation",
        "tags": ["abliterated", "directional-ablation", "abliterate"],
    }


def test_the_model_index_holds_the_figures_with_their_base_and_the_keep_test() -> None:
    found = report()
    data = ModelCard(model_card(proof(), found)).data
    assert data.model_name == "model-abliterated"
    results = {(r.dataset_name, r.metric_type): r for r in data.eval_results}
    rates = {("bad", "withheld_rate"), ("bad", "degenerate_rate"), ("safe", "refused_rate"), ("safe", "degenerate_rate")}
    assert set(results) == {*rates, ("bad", "kl_first_token")}
    freed = results["bad", "withheld_rate"]
    assert freed.metric_value == 0 and freed.metric_args["base"] == {"rate": 0.6667, "k": 2} and freed.metric_args["n"] == 3
    assert results["bad", "kl_first_token"].metric_value == 0.2
    assert keep_tests(data.eval_results) == [("safe", False)]


def test_a_card_without_figures_has_no_results() -> None:
    assert keep_tests(ModelCard(model_card(proof(), None)).data.eval_results) == []
    assert "model-index" not in front_matter(model_card(proof(), None))


def test_the_licence_is_the_bases_and_what_nobody_states_is_unknown() -> None:
    made = licensed("other", name="qwen-research", link="LICENSE", files=("LICENSE", "NOTICE"))
    matter = front_matter(model_card(made, None))
    assert (matter["license"], matter["license_name"], matter["license_link"]) == ("other", "qwen-research", "LICENSE")
    card = model_card(made, None)
    assert "**Built with Qwen**" in card and "`LICENSE`, `NOTICE`" in card and "not commercial" in card
    unknown = model_card(proof(), None)
    assert front_matter(unknown)["license"] == "unknown" and "**Unknown**" in unknown
    assert front_matter(model_card(licensed("mit", "llama3.1"), None))["license"] == ["mit", "llama3.1"]


def test_a_card_written_before_licences_were_kept_is_still_written() -> None:
    assert "**Unknown**" in model_card(changed(proof(), {"licence": GONE, "base_revision": GONE}), report())


def test_a_model_made_from_a_llama_is_displayed_as_one_whatever_its_own_card_says() -> None:
    card = model_card(licensed("mit", base_model="deepseek-ai/DeepSeek-R1-Distill-Llama-8B"), None)
    assert "**Built with Llama**" in card and "Llama 3.1 is licensed under" in card


def test_the_command_is_given_without_where_anything_lies_here() -> None:
    found = report(run={"settings": {"model": "/home/someone/models/tiny", "target": ["~/sets/mine.jsonl", "harmful"], "limit": 12}})
    card = model_card(proof("tiny"), found)
    assert "abliterate run --model tiny --target mine.jsonl harmful --limit 12" in card
    assert "/home" not in card and "~/" not in card and "(a local folder" in card
    assert without_paths(run_of({"settings": {"model": "./x"}, "hub_id": "org/x"})).settings == {"model": "org/x"}


def test_what_is_named_relative_to_here_and_servers_are_no_more_than_names_either() -> None:
    settings = {
        "model": "clients/acme/tiny",
        "target": ["acme/asked.txt", "harmful", "hf:org/set:test:text", "hf:/data/acme/own:test:text"],
        "keep": ["../acme/kept.jsonl"],
        "harmless": "acme/plain.txt",
        "layout": "acme/new.toml",
        "study": "postgresql://me@db.acme.internal/studies",
        "engine": "http://10.0.0.7:8000/v1",
        "engine_model": "/data/acme/served",
        "reference": "acme/true-one",
    }
    agreed = {"kappa": None, "kappa_ci95": None, "n": 0, "disagreements": 0, "unjudged": 0, "by_set": {}}
    judge = {"name": "chat:http://judge.acme.internal:8000/v1#/data/acme/grader", **agreed}
    found = changed(report(run={"settings": settings}), {"judge": judge})
    card = model_card(proof("tiny"), found)
    named = "--target asked.txt harmful hf:org/set:test:text hf:own:test:text --keep kept.jsonl --harmless plain.txt --layout new.toml"
    assert f"--model tiny {named} --study DATABASE --engine SERVER --engine-model served --reference true-one" in card
    assert "judged by chat:SERVER\\#grader" in card
    assert not any(word in card for word in ("acme", "10.0.0.7", "://db", "/data"))


@pytest.mark.parametrize(
    ("judge", "shown"),
    [
        ("classifier:/data/acme/grader", "classifier:grader"),
        ("classifier:org/grader", "classifier:org/grader"),
        ("chat:http://10.0.0.7:8000/v1", "chat:SERVER"),
        ("rules", "rules"),
    ],
)
def test_a_judge_is_named_without_where_it_is(judge: str, shown: str) -> None:
    assert judge_without_paths(judge) == shown


def test_the_page_shows_a_url_without_who_asks_and_without_its_query() -> None:
    settings = {"model": "m", "study": "postgresql://me:hunter2@host/name?password=hunter2", "engine": "http://host:8000/v1"}
    shown = provenance.command(run_of({"settings": settings}))
    assert "--study postgresql://host/name --engine http://host:8000/v1" in shown and "hunter2" not in shown


def test_the_commands_say_which_revision_the_base_had() -> None:
    found = report(run={"hub_id": "org/model", "revision": "abc123", "settings": {"model": "org/model", "revision": "main"}})
    made = proof(revision="abc123")
    assert "abliterate verify . --base org/model --revision abc123\n" in model_card(made, found)
    assert "abliterate run --model org/model --revision abc123 --out RUN\n" in model_card(made, found)
    assert "abliterate edit --model org/model --revision abc123 --plan abliteration.plan" in model_card(made, None)
    assert "--revision" not in model_card(proof(), report())


def test_the_versions_and_the_weights_hashes_are_there() -> None:
    card = model_card(proof(revision="abc123"), report())
    assert "ab" * 32 in card and "cd" * 32 not in card and "torch 2" in card and "abc123" in card


@pytest.mark.parametrize("folder", ["/home/someone/model", "./model", "../a/model", "model", "models/sub/llama"])
def test_a_folder_is_not_called_a_base_model_on_the_hub(folder: str) -> None:
    assert "base_model" not in front_matter(model_card(proof(folder), None))


@pytest.mark.parametrize("name", ["org/model: x", "org/model\nlicense: mit", "org/#1", 'org/"quoted', "org/{x", "- a/b", "org/a\n---\n# T"])
def test_any_base_name_leaves_the_front_matter_valid(name: str) -> None:
    assert set(front_matter(model_card(proof(name), None))) <= KEYS
    assert set(front_matter(model_card(proof(name), report(name)))) <= KEYS


def test_without_a_report_the_behaviour_is_called_not_measured() -> None:
    card = model_card(proof(), None)
    assert "**not measured**" in card and "| prompt set |" not in card


def test_the_rates_before_and_after_are_given_with_their_intervals() -> None:
    found = report()
    card, entry = model_card(proof(), found), found.sets["bad"]
    assert entry.edited
    base, edited = corrected(entry.base.withheld), corrected(entry.edited.withheld)
    assert base.startswith("corrected ") and "`corrected`: the rate without the errors" in card
    assert f"| bad | target | 3 | withheld | 66.7 % (2/3, 95 % 20.8–93.9; {base}) | 0.0 % (0/3, 95 % 0.0–56.1; {edited}) |" in card
    assert "| safe | keep | 3 | refused | 100.0 % (3/3" in card


def test_what_was_not_measured_is_said_in_words() -> None:
    document = report()
    section = model_card(proof(), document).split("## What was not measured")[1].split("\n## ")[0]
    assert provenance.missing(document) and all(one_line(words) in section for words in provenance.missing(document))
    assert "`" not in section and "other languages" in section


def test_controls_and_recovery_are_said_where_they_are_there() -> None:
    assert "## Controls" not in model_card(proof(), report())
    rate = {"k": 1, "n": 2, "rate": 0.5, "ci95": [0.1, 0.9]}
    controls = {
        "seeds": [0], "set": ["bad"], "n": 2, "n_withheld": 2, "same_first": {"edited": rate, "random": [rate]},
        "kl_first_token": {"edited": 0.1, "random": [0.01]},
    }  # fmt: skip
    assert "edits of the same strength along random directions" in model_card(proof(), changed(report(), {"controls": controls}))


def test_the_worths_are_defined_where_their_figures_are_and_only_there() -> None:
    base = {"bad": [(t, Verdict("answered", "no rule", worth="invented")) for t, _ in judged("bad", "Paris.", "Rome.")]}
    plain = {"settings": {"model": "m", "max_new_tokens": 64}, "abliterate": "0.1", "versions": {"torch": "2"}, "model_hashes": HASHES}
    card = model_card(proof(), reported(plain, {"bad": "target"}, base, base, None, {"chosen": {}}, {"tensors": 7}, 0.05))
    defined = [f"{each.title}: {each.short}" for each in WORTHS]
    assert "What the answers are worth, bad:" in card and all(card.count(said) == 1 for said in defined)
    assert not [said for said in defined if said in model_card(proof(), report())]


def test_a_keep_test_that_fails_is_said_to_fail() -> None:
    assert "did not fall by more than 5 points: **not shown**" in model_card(proof(), report())


def test_the_edit_is_described_by_the_proof() -> None:
    card = model_card(proof(), None)
    assert "7 tensors" in card and "at most 1e-05 %" in card and "not edited; tied to the unembedding" in card


@pytest.mark.parametrize(
    ("name", "markup"),
    [
        ("<script>alert(1)</script>", "<script"),
        ("<img src=x onerror=alert(1)>", "<img"),
        ("a | b", "| a | b |"),
        ("a\n\n# Title", "\n# Title"),
        ("a`b`", "a`b`"),
        ("[free](https://evil.example)", "[free](https://evil.example)"),
        ("![seen](https://evil.example/pixel.png)", "![seen]("),
        ("**loud**", "| **loud** |"),
    ],
    ids=["script", "image tag", "cell", "heading", "code", "link", "image", "bold"],
)
def test_a_users_name_starts_no_markup(name: str, markup: str) -> None:
    assert markup not in model_card(proof(), report(name))


@pytest.mark.parametrize("name", ["a | b", "a\nb", "a\\|b", "a || b |"])
def test_every_row_of_the_table_has_six_cells(name: str) -> None:
    section = model_card(proof(), report(name)).split("## What was removed")[1]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) == 6
    assert {row.replace("\\|", "").count("|") for row in rows} == {7}


def test_one_line_is_one_line() -> None:
    assert one_line(" a\r\n b\u2028c\tlast ") == "a b c last"


def test_only_where_all_is_taken_out_the_model_is_said_to_write_no_more_along_it() -> None:
    whole, half, tuned = (model_card(proof(strengths=each), None) for each in ((1, 1), (0.7, 0.7), (0.01, 0.4, 1)))
    assert "can no longer write along it" in whole and "| strength α | 1 for every tensor |" in whole
    for card in (half, tuned):
        assert "no longer write along" not in card and "removes everything" not in card and "they write **less** along it" in card
    assert "The edit removes 70 %" in half and "| strength α | 0.7 for every tensor |" in half
    assert (
        "The edit removes 1 % to 100 %" in tuned and "| strength α | 0.01 to 1, depending on the tensor |" in tuned and "3 tensors" in tuned
    )


def test_the_card_says_whether_the_target_fell() -> None:
    assert "Withheld replies on bad became fewer: NOT shown (2 → 0 of 3; exact paired test, p = 0.5; " in model_card(proof(), report())


def test_a_local_base_has_its_own_base_named() -> None:
    made = licensed(base_model="model", bases=("org/first", "../elsewhere"))
    card = model_card(made, None)
    assert "base_model" not in front_matter(card)  # on the Hub, base_model means the direct parent
    assert "| base model | model (its card names org/first as its own base) |" in card and "base revision" not in card
    assert front_matter(model_card(licensed(bases=("org/first",)), None))["base_model"] == "org/model"


def test_a_snapshot_in_the_hubs_cache_is_called_by_its_repository() -> None:
    place = f"/srv/hub/models--org--name/snapshots/{'0a' * 20}"
    card = model_card(proof("0a" * 20), report(run={"model_path": place, "settings": {"model": place}}))
    assert "# org/name, edited" in card and "not a Hub repository" not in card and "base_model" not in front_matter(card)
