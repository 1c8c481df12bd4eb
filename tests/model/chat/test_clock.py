"""A clock in a chat template stands still at the time that it is given."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from conftest import CHATML, byte_tokenizer, save_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.compute.session import Session
from abliterate.config import ModelConfig
from abliterate.errors import InputError
from abliterate.model.chat.clock import parsed, reads_clock, stopped
from abliterate.model.chat.template import encode, load_tokenizer

AT = datetime(2001, 2, 3, 4, 5, 6)
COMMON = ["%d", "%-d", "%B", "%b", "%Y", "%H:%M:%S", "%j", "%%", "%c", "%Z", "%A", " ", "é 你", "100%!", "{}", '"', "\\", "'", "%-!"]
RARE = ["%Ey", "%Od", "%^a", "%_d", "%010Y", "%"]
TOKENIZER = byte_tokenizer()


def shown(template: str, at: datetime, said: str = "") -> str:
    message = [{"role": "user", "content": said}]
    return str(TOKENIZER.apply_chat_template(message, chat_template=stopped(template, at), tokenize=False))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(COMMON + RARE), max_size=6), st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31)))
def test_the_time_is_written_as_strftime_writes_it(parts: list[str], at: datetime) -> None:
    wanted = "".join(parts)
    assert shown("{{ strftime_now(" + json.dumps(wanted) + ") }}", at) == at.strftime(wanted)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(COMMON), max_size=6), st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31)))
def test_a_format_that_is_put_together_in_the_template_is_known_too(parts: list[str], at: datetime) -> None:
    wanted = "".join(parts)
    assert shown("{{ strftime_now(format=messages[0].content) }}", at, wanted) == at.strftime(wanted)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ strftime_now('%d') | int - 1 }}", "2"),
        ("{% macro day() %}{{ strftime_now('%A') }}{% endmacro %}{{ day() }}", "Saturday"),
        ("{% for m in messages %}{% if strftime_now is defined %}{% set d = strftime_now('%Y') %}{{ d }}{% endif %}{% endfor %}", "2001"),
        ("{{ strftime_now('%Y-%m-%d').split('-')[1] }}", "02"),
    ],
)
def test_a_template_may_compute_with_the_time(template: str, text: str) -> None:
    assert shown(template, AT) == text


@pytest.mark.parametrize("start", ["", "\n", "\n\n", "  ", " \n  ", "x", "{# said #}\n", "  {%- set x = 1 %}\n"])
def test_what_stops_the_clock_adds_nothing_to_the_text(start: str) -> None:
    template = start + CHATML + "{# strftime_now #}"
    message = [{"role": "user", "content": "Hello"}]
    assert stopped(template, AT) != template
    assert shown(template, AT, "Hello") == TOKENIZER.apply_chat_template(message, chat_template=template, tokenize=False)


def test_a_template_without_a_clock_is_left_as_it_is() -> None:
    assert not reads_clock(CHATML) and stopped(CHATML, AT) == CHATML


def test_prompts_show_the_sessions_time_however_the_model_is_held(tmp_path: Path) -> None:
    template = "Today is {{ strftime_now('%d %B %Y %H:%M:%S') }}. " + CHATML
    model = save_tiny(tmp_path, layers=8, d_model=512, tokenizer=byte_tokenizer(template))
    prompts = encode(load_tokenizer(model, clock=AT), ["Hello"])
    assert load_tokenizer(model).decode(prompts[0]).startswith("Today is 03 February 2001 04:05:06. <|im_start|>user")
    held = [Session(ModelConfig(model=str(model), max_memory=room), model, clock=AT) for room in (None, "930MiB")]
    assert [session.holding.whole for session in held] == [True, False]
    for session in held:
        assert encode(session.tokenizer(), ["Hello"]) == encode(session.model.tokenizer, ["Hello"]) == prompts
    plain = Session(ModelConfig(model=str(model)), model)
    assert encode(plain.tokenizer(), ["Hello"]) == encode(plain.model.tokenizer, ["Hello"])


@pytest.mark.parametrize("text", ["2001-02-03T04:05:06", "2001-02-03T04:05:06+09:00"])
def test_a_recorded_time_is_read_as_it_stands(text: str) -> None:
    assert parsed(text, "run.json") == AT


@pytest.mark.parametrize("text", ["yesterday", "", 7, None, ["2001"], "2001-02-03\n"])
def test_what_is_no_time_is_refused(text: object) -> None:
    with pytest.raises(InputError, match=r"run\.json: its clock") as refused:
        parsed(text, "run.json")
    assert "\n" not in str(refused.value)
