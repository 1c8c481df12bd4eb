"""Which of a server's models is asked: ours where it can be told, and never the base for the edited one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Handler, StandIn, Time, body, completion, running, status

from abliterate.errors import InputError
from abliterate.replies.asking import find
from abliterate.replies.served import Served, Wanted
from abliterate.replies.server import AwayError, Server

HUB = "Qwen/Qwen3-4B"


@pytest.fixture
def server() -> Iterator[StandIn]:
    with running(StandIn()) as made:
        yield made


@pytest.fixture
def base(tmp_path: Path) -> Wanted:
    (tmp_path / "base").mkdir()
    return Wanted(tmp_path / "base", (HUB, "Qwen3-4B", "qwen3-4b"))


@pytest.fixture
def edited(tmp_path: Path, base: Wanted) -> Wanted:
    """The edited checkpoint, on a server that was not named for it."""
    (tmp_path / "checkpoint").mkdir()
    return Wanted(tmp_path / "checkpoint", certain=True, never=base)


def given(edited: Wanted, *also_base: str) -> Wanted:
    """The same on a server that was named for it."""
    assert edited.never is not None
    return Wanted(edited.path, never=Wanted(edited.never.path, (*edited.never.names, *also_base)))


def choose(server: StandIn, wanted: Wanted, named: str | None = None) -> Served:
    time = Time()
    return find(Server(server.url, patience=50.0, sleep=time.sleep, clock=time.clock), wanted, named)


def refused(server: StandIn, wanted: Wanted, named: str | None = None) -> str:
    with pytest.raises(InputError) as raised:
        choose(server, wanted, named)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600
    return str(raised.value)


def only_known(server: StandIn) -> None:
    """As most servers: a name that isn't listed is refused."""
    server.knows = lambda model: model in [card["id"] for card in server.cards]


OTHERS: list[dict[str, Any]] = [{"id": "acme/other", "root": "/models/other", "owned_by": "vllm"}, {"id": "third"}]


@pytest.mark.parametrize("where", ["root", "id", "with a slash", "relative"])
def test_a_model_is_found_by_its_folder(where: str, server: StandIn, base: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base.path is not None
    monkeypatch.chdir(base.path.parent)
    cards = {
        "root": {"id": "alias", "root": str(base.path), "owned_by": "vllm"},
        "id": {"id": str(base.path)},
        "with a slash": {"id": f"{base.path}/"},
        "relative": {"id": "base"},
    }
    server.cards = [*OTHERS, cards[where]]
    only_known(server)
    found = choose(server, base)
    assert (found.model, found.by) == (cards[where]["id"], "its folder")
    if where == "root":
        assert (found.root, found.owner) == (str(base.path), "vllm")


@pytest.mark.parametrize("name", [HUB, "qwen/qwen3-4b", "Qwen3-4B", "qwen3-4b"])
@pytest.mark.parametrize("key", ["id", "root"])
def test_a_model_is_found_by_its_name(key: str, name: str, server: StandIn, base: Wanted) -> None:
    server.cards = [*OTHERS, {"id": "alias"} | {key: name}]
    only_known(server)
    assert choose(server, base).by == "its name"


def test_its_folder_says_more_than_its_name(server: StandIn, base: Wanted) -> None:
    server.cards = [{"id": HUB}, {"id": "mine", "root": str(base.path)}]
    assert choose(server, base).model == "mine"


def test_the_only_model_is_taken_for_it_and_that_is_said(server: StandIn, base: Wanted, capfd: pytest.CaptureFixture[str]) -> None:
    only_known(server)
    assert choose(server, base) == Served("tiny", by="the only one served", extra={"repetition_penalty": 1.0})
    assert "its only model, 'tiny', is used as" in capfd.readouterr().err


def test_of_several_one_must_be_named(server: StandIn, base: Wanted) -> None:
    server.cards = OTHERS
    only_known(server)
    line = refused(server, base)
    assert "'acme/other', 'third'" in line and "--engine-model NAME" in line
    assert choose(server, base, "third") == Served("third", by="--engine-model", extra={"repetition_penalty": 1.0})


@pytest.mark.parametrize("wanted", [Wanted(), None], ids=["whatever is served", "a model"])
def test_a_server_without_models_is_refused(wanted: Wanted | None, server: StandIn, base: Wanted) -> None:
    server.cards = []
    server.knows = lambda model: False
    assert "it lists no model" in refused(server, wanted or base)


def test_whatever_is_served_is_asked_where_no_model_is_wanted(server: StandIn) -> None:
    server.cards = [{"id": "org/model", "root": "/w"}]
    assert choose(server, Wanted()).model == "org/model"
    assert all(asked.get("model") == "org/model" for path, asked, _ in server.asked if path.endswith("completions"))


def test_a_name_that_the_server_does_not_know_is_refused_in_its_words(server: StandIn, base: Wanted) -> None:
    only_known(server)
    assert "HTTP 404: The model `mistaken` does not exist." in refused(server, base, "mistaken")


def test_a_name_that_is_not_listed_may_still_be_served(server: StandIn, base: Wanted) -> None:
    assert choose(server, base, "hidden").model == "hidden"


def test_a_server_that_loads_what_it_is_asked_for_is_asked_by_the_folder(server: StandIn, base: Wanted) -> None:
    server.cards, server.strict = OTHERS, True
    server.knows = lambda model: Path(model).is_dir()
    found = choose(server, base)
    assert (found.model, found.root, found.by) == (str(base.path), str(base.path), "its folder, loaded on demand")


def test_a_server_that_answers_to_any_name_shows_nothing_by_it(server: StandIn, base: Wanted, edited: Wanted) -> None:
    assert choose(server, base).by == "the only one served"
    assert "doesn't serve the edited model" in refused(server, edited)


def test_an_error_for_a_folder_that_can_not_be_loaded_is_no_outage(server: StandIn, base: Wanted) -> None:
    def probed(request: Handler) -> None:
        known = request.content["model"] == "tiny"
        (body(completion("H")) if known else status(500, "Internal Server Error"))(request)

    server.probed = probed  # type: ignore[method-assign]
    assert choose(server, base).model == "tiny"


def test_an_error_with_a_200_is_a_refusal(server: StandIn, base: Wanted) -> None:
    def probed(request: Handler) -> None:
        (body(completion("H")) if request.content["model"] == "tiny" else body({"error": "no such model"}))(request)

    server.probed = probed  # type: ignore[method-assign]
    assert choose(server, base).by == "the only one served"
    assert "no such model" in refused(server, base, "mistaken")


def test_a_server_that_is_still_loading_is_waited_for(server: StandIn, base: Wanted) -> None:
    left = [status(503, "Loading model"), status(503, "Loading model"), server.models]
    server.models = lambda request: left.pop(0)(request)
    assert choose(server, base).model == "tiny"


@pytest.mark.parametrize("strict", [False, True])
def test_no_penalty_of_the_checkpoints_own_advice_is_used_where_the_server_can_be_told(strict: bool, server: StandIn) -> None:
    server.strict = strict
    assert choose(server, Wanted()).extra == ({} if strict else {"repetition_penalty": 1.0})


@pytest.mark.parametrize("code", [404, 405, 500, 501])
def test_a_list_that_the_server_does_not_give_is_done_without_where_the_name_is_known(code: int, server: StandIn, base: Wanted) -> None:
    server.models = status(code, "no list here")
    assert choose(server, Wanted(), "tiny").model == "tiny"
    server.knows = lambda model: Path(model).is_dir()
    assert choose(server, base).model == str(base.path)
    assert f"HTTP {code}: no list here" in refused(server, Wanted())


def test_a_base_url_without_its_version_gets_a_hint(server: StandIn) -> None:
    server.models = status(404, "Not Found")
    with pytest.raises(InputError, match="is /v1 missing from the URL"):
        find(Server(server.url.removesuffix("/v1")), Wanted(), None)


@pytest.mark.parametrize("listing", [b"<html>", b"[]", b'{"data": 3}', b'{"data": [{"name": "x"}]}', b'{"data": ["x"]}', b"null"])
def test_what_is_no_list_of_models_is_refused(listing: bytes, server: StandIn) -> None:
    server.models = body(listing)
    assert "not a reply in OpenAI's format" in refused(server, Wanted())


def test_names_that_no_folder_can_have_are_no_folder(server: StandIn, base: Wanted) -> None:
    server.cards = [{"id": "a\x00b", "root": "x" * 5000}, {"id": str(base.path), "root": 7, "owned_by": None}]
    assert choose(server, base).model == str(base.path)


def test_a_server_that_stays_away_is_waited_for_and_then_given_up(server: StandIn, base: Wanted) -> None:
    server.models = status(503)
    with pytest.raises(AwayError):
        choose(server, base)


def test_the_edited_model_must_be_served_by_its_folder(server: StandIn, edited: Wanted) -> None:
    only_known(server)
    line = refused(server, edited)
    assert f"serve {edited.path} and run the same command again with --edited-engine URL" in line and "'tiny'" in line
    assert "serve" in refused(server, edited, "tiny")  # --engine-model names the base there
    server.cards = [{"id": "tiny"}, {"id": "tiny", "root": str(edited.path)}]
    assert choose(server, edited).by == "its folder"


def test_the_edited_model_may_be_loaded_on_demand(server: StandIn, edited: Wanted) -> None:
    server.knows = lambda model: Path(model).is_dir()
    assert choose(server, edited, "tiny").model == str(edited.path)


def test_a_server_given_for_the_edited_model_may_call_it_anything(server: StandIn, edited: Wanted) -> None:
    only_known(server)
    assert choose(server, given(edited)).model == "tiny"
    server.cards = [{"id": "base-model"}, {"id": "my-lora", "parent": "base-model"}]
    assert choose(server, given(edited), "my-lora").by == "--engine-model"
    assert "say which one" in refused(server, given(edited), "of the other server")


@pytest.mark.parametrize(
    "card", [{"id": HUB}, {"id": "qwen3-4b"}, {"id": "x", "root": HUB}, {"id": "x", "root": "BASE"}, {"id": "as before"}]
)
def test_what_is_known_to_be_the_base_is_never_taken_for_the_edited_model(card: dict[str, str], server: StandIn, edited: Wanted) -> None:
    assert edited.never is not None
    server.cards = [{key: value.replace("BASE", str(edited.never.path)) for key, value in card.items()}]
    only_known(server)
    assert "which is the base and not the edited model" in refused(server, given(edited, "as before"))


def test_the_bases_alias_does_not_hide_the_edited_folder(server: StandIn, edited: Wanted) -> None:
    server.cards = [{"id": "as before", "root": str(edited.path)}]
    assert choose(server, given(edited, "as before")).by == "its folder"


@pytest.mark.parametrize("strict", [True, False])
def test_a_server_that_gives_its_model_none_of_the_prompt_is_refused(server: StandIn, strict: bool) -> None:
    server.counts, server.strict = lambda prompt: 12, strict
    assert "'tiny' gets 12 tokens for a short prompt and for a long one" in refused(server, Wanted())


def test_a_server_that_counts_no_tokens_is_believed(server: StandIn) -> None:
    server.counts = lambda prompt: 0
    assert choose(server, Wanted()).model == "tiny"
