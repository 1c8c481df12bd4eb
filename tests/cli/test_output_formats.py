"""--as of ``edit``: which format a value names, and the flag that came before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticCustomError

from abliterate.cli.options import build
from abliterate.config import EditCommandConfig
from abliterate.config.formats import OUTPUT_FORMATS, ChosenFormat, Offered, chosen_format, described
from abliterate.errors import InputError

TYPED = {**OUTPUT_FORMATS, "packed": Offered("one file", ("F16", "Q8_0"))}


def output(**given: Any) -> ChosenFormat:
    return build(EditCommandConfig, None, {"model": "m", "direction": "d", **given}).output


def refused(**given: Any) -> str:
    with pytest.raises(InputError) as error:
        output(**given)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_flag_a_checkpoint_is_written() -> None:
    assert output() == ChosenFormat("checkpoint")


@pytest.mark.parametrize("name", OUTPUT_FORMATS)
def test_every_format_is_named_by_the_flag(name: str) -> None:
    assert output(as_=name) == ChosenFormat(name)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"as_adapter": True}, "adapter"),
        ({"as_adapter": False}, "checkpoint"),
        ({"as_adapter": True, "as_": "adapter"}, "adapter"),
        ({"as_adapter": False, "as_": "checkpoint"}, "checkpoint"),
    ],
    ids=str,
)
def test_the_alias_means_what_it_meant(given: dict[str, Any], name: str) -> None:
    assert output(**given) == ChosenFormat(name)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"as_": "gguff"}, "--as gguff: not one of checkpoint, adapter"),
        ({"as_": ""}, "--as '': not one of checkpoint, adapter"),
        ({"as_": "Adapter"}, "--as Adapter: not one of checkpoint, adapter"),
        ({"as_": "adapter:Q8_0"}, "--as adapter:Q8_0: adapter has no types: leave out the colon and what follows it"),
        ({"as_": "checkpoint:"}, "--as checkpoint:: checkpoint has no types: leave out the colon and what follows it"),
        ({"as_": "checkpoint", "as_adapter": True}, "--as-adapter contradicts --as checkpoint: leave --as-adapter out"),
        ({"as_": "adapter", "as_adapter": False}, "--no-as-adapter contradicts --as adapter: leave --no-as-adapter out"),
    ],
    ids=str,
)
def test_what_names_no_format_or_two_is_bad_input(given: dict[str, Any], said: str) -> None:
    assert refused(**given) == said


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ("packed", ChosenFormat("packed")),
        ("packed:F16", ChosenFormat("packed", "F16")),
        ("packed:Q8_0", ChosenFormat("packed", "Q8_0")),
    ],
)
def test_a_format_with_types_takes_one_after_a_colon(given: str, chosen: ChosenFormat) -> None:
    assert chosen_format(given, TYPED) == chosen


@pytest.mark.parametrize("given", ["packed:", "packed:Q9", "packed:f16", "packed:F16:F16"])
def test_a_type_that_is_none_is_refused_with_those_that_are(given: str) -> None:
    with pytest.raises(PydanticCustomError, match="not a type of packed, whose types are F16, Q8_0"):
        chosen_format(given, TYPED)


def test_the_help_and_the_refusal_of_an_unknown_format_say_which_takes_a_type() -> None:
    assert described(TYPED).endswith("; packed[:TYPE]: one file")
    with pytest.raises(PydanticCustomError, match=r"not one of checkpoint, adapter, packed\[:TYPE\]"):
        chosen_format("none", TYPED)


def test_the_key_of_a_file_is_the_flags_name(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    for line, name in (('as = "adapter"', "adapter"), ("as-adapter = true", "adapter"), ("as_adapter = false", "checkpoint")):
        file.write_text(line + "\n", encoding="utf-8")
        assert build(EditCommandConfig, file, {"model": "m", "direction": "d"}).output == ChosenFormat(name)
    file.write_text('ass = "adapter"\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"no setting 'ass': did you mean as\?"):
        build(EditCommandConfig, file, {"model": "m", "direction": "d"})
