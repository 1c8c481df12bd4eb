"""Config models as flags and as TOML."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from abliterate import config as configs
from abliterate.cli.main import app
from abliterate.cli.options import build, flags_of_several, repeat_flags
from abliterate.config import AuditConfig, CompareConfig, Config, EditCommandConfig, EngineConfig, JudgeConfig, RunConfig
from abliterate.config.recorded import RECORDED
from abliterate.config.replies import ServerConfig
from abliterate.config.setting import Panel, setting_of, values_naming
from abliterate.errors import InputError

CONFIG = Path(configs.__file__).parent
PACKAGE = CONFIG.parent
SEVERAL = ("--target", "--keep")
MODELS = [c for c in vars(configs).values() if isinstance(c, type) and issubclass(c, Config)]


def built(folder: Path, toml: str | bytes, model: type[Config] = RunConfig, **flags: Any) -> Any:
    file = folder / "settings.toml"
    file.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
    return build(model, file, {"model": "m", **flags})


def refused(folder: Path, toml: str | bytes, model: type[Config] = RunConfig, **flags: Any) -> str:
    with pytest.raises(InputError) as caught:
        built(folder, toml, model, **flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_given_gives_the_defaults() -> None:
    made = build(RunConfig, None, {"model": "m"})
    assert (made.target, made.baseline, made.strength, made.embedding, made.limit) == (("harmful",), (), 1.0, "auto", None)


def test_the_file_wins_over_defaults_and_flags_win_over_the_file(tmp_path: Path) -> None:
    made = built(tmp_path, "strength = 0.5\nmargin = 0.1\ncandidates = 9\n", strength=0.75, candidates=3)
    assert (made.strength, made.margin, made.candidates, made.max_layer) == (0.75, 0.1, 3, 0.8)


def test_a_flag_replaces_a_list_of_the_file(tmp_path: Path) -> None:
    assert built(tmp_path, 'target = ["a", "b"]\n', target=["c"]).target == ("c",)


def test_a_flag_replaces_a_bad_value_of_the_file(tmp_path: Path) -> None:
    assert built(tmp_path, 'strength = "high"\n', strength=0.5).strength == 0.5


@pytest.mark.parametrize("key", ["max_new_tokens", "max-new-tokens"])
def test_keys_are_written_like_fields_or_like_flags(tmp_path: Path, key: str) -> None:
    assert built(tmp_path, f"{key} = 7\n").max_new_tokens == 7


def test_one_set_needs_no_list_in_the_file(tmp_path: Path) -> None:
    made = built(tmp_path, 'target = "censorship"\nkeep = ["harmful", "borderline-unsafe"]\n')
    assert (made.target, made.keep) == (("censorship",), ("harmful", "borderline-unsafe"))


def test_a_unicode_file_with_windows_line_ends_is_read(tmp_path: Path) -> None:
    assert built(tmp_path, 'target = "提示.txt"\r\ncandidates = 3\r\n').target == ("提示.txt",)


def test_an_unknown_key_is_refused_with_the_file_and_the_key_that_may_be_meant(tmp_path: Path) -> None:
    message = refused(tmp_path, 'strenght = 1.0\nmodel = "m"\n')
    assert message.endswith("settings.toml: no setting 'strenght': did you mean strength?")
    assert "--help" in refused(tmp_path, 'quux = 1\nmodel = "m"\n')


def test_a_table_is_an_unknown_key(tmp_path: Path) -> None:
    assert "no setting 'run'" in refused(tmp_path, "[run]\nstrength = 0.5\n")


def test_a_key_of_another_command_is_unknown(tmp_path: Path) -> None:
    assert "no setting 'target'" in refused(tmp_path, 'target = "harmful"\n', EditCommandConfig)


@pytest.mark.parametrize(
    "line",
    [
        'strength = "high"',
        "strength = 1.5",
        "strength = -0.1",
        "strength = nan",
        "batch_size = 0",
        "batch_size = 1.5",
        "max_new_tokens = -1",
        "candidates = []",
        "margin = 0",
        "max_layer = 1.01",
        "max_kl = 0.0",
        "limit = 3",
        "positions = 65",
        'dtype = "float8"',
        'embedding = "none"',
        "model = 3",
        "target = 3",
        'target = ["a", 3]',
        "trust_remote_code = 2",
        'candidates = "three"',
    ],
)
def test_a_wrong_value_is_refused_with_the_file_and_the_flag(tmp_path: Path, line: str) -> None:
    key = line.split(" ")[0]
    (tmp_path / "settings.toml").write_text(line + ("" if key == "model" else '\nmodel = "m"') + "\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        build(RunConfig, tmp_path / "settings.toml", {})
    message = str(caught.value)
    assert "settings.toml: " in message and f"--{key.replace('_', '-')} " in message and "\n" not in message


def test_a_wrong_flag_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    message = refused(tmp_path, "margin = 0.1\n", strength=2.0)
    assert message.startswith("--strength 2.0: ") and "settings.toml" not in message


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"limit": "0"}, "--limit 0: must be at least 4"),
        ({"limit": "many"}, "--limit many: not a whole number"),
        ({"limit": "4.5"}, "--limit 4.5: not a whole number"),
        ({"tune": "bogus"}, "--tune bogus: not one of auto, gradient, search, off"),
        ({"strength": "high"}, "--strength high: not a number"),
        ({"positions": "65"}, "--positions 65: must be at most 64"),
        ({"margin": "1"}, "--margin 1: must be less than 1.0"),
        ({"max_kl": "0"}, "--max-kl 0: must be more than 0.0"),
        ({"max_kl": "inf"}, "--max-kl inf: not a finite number"),
        ({"strength": "nan"}, "--strength nan: not a finite number"),
        ({"reference": ""}, "--reference '': must not be empty"),
        ({"target": ()}, "--target (): must name at least 1"),
        ({"target": 3}, "--target 3: must be a list of texts"),
        ({"trust_remote_code": "maybe"}, "--trust-remote-code maybe: must be true or false"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_is_wrong_with_a_flag_is_said_in_plain_words(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        build(RunConfig, None, {"model": "m", **given})
    assert str(caught.value) == said


WRONG: tuple[Any, ...] = (
    "",
    "x y",
    "inf",
    "nan",
    "1e400",
    "9" * 5000,
    "-1",
    "0",
    "1.5",
    "1e9",
    10**20,
    2.5,
    -3,
    [],
    {},
    None,
    ["a", 3],
    b"\xff",
)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_no_value_of_any_setting_is_refused_in_the_words_of_a_library(model: type[Config]) -> None:
    needed = {name: ("a",) if name == "prompts" else "m" for name, info in model.model_fields.items() if info.is_required()}
    for name in model.model_fields:
        for value in WRONG:
            try:
                build(model, None, {**needed, name: value})
            except InputError as error:
                assert not re.search(r"Input should|valid|Value error|pydantic|should (have|match)", str(error)), error
                assert "\n" not in str(error) and len(str(error)) < 300


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_every_setting_stands_in_a_panel_of_the_help(model: type[Config]) -> None:
    assert [name for name, info in model.model_fields.items() if setting_of(info).panel == Panel.OTHER] == []


def test_a_setting_stands_at_the_same_place_in_every_command() -> None:
    places: dict[str, set[tuple[int, int]]] = {}
    for model in MODELS:
        for name, info in model.model_fields.items():
            if name != "seed":  # of sampling; in a run of the tuner and the search too
                places.setdefault(name, set()).add(setting_of(info).place)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_how_a_server_is_asked_is_declared_once_for_engines_and_judges() -> None:
    assert set(ServerConfig.model_fields) == {"concurrency", "request_timeout", "patience"}
    for model in (EngineConfig, JudgeConfig):
        assert issubclass(model, ServerConfig) and not ServerConfig.model_fields.keys() & model.__annotations__.keys()


def test_help_lists_the_options_of_a_panel_by_rank() -> None:
    flags = {
        name: [option.opts[0] for option in command.params]
        for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    }
    assert flags["compare"][:9] == [
        *("--base", "--derived", "--keep", "--prompts", "--out", "--reference", "--limit", "--split", "--weights-only"),
    ]
    chosen = flags["run"].index("--prefer")
    assert flags["run"][chosen : chosen + 13] == [
        *("--prefer", "--max-kl", "--tune", "--tune-steps", "--tune-directions", "--candidates", "--estimators"),
        *("--max-layer", "--min-share", "--positions", "--trials", "--study", "--seed"),
    ]
    assert flags["push"][:3] == ["checkpoint", "repo", "--base"]


def test_the_flags_that_take_several_values_are_those_of_lists() -> None:
    lists = {
        "--" + name.replace("_", "-") for model in MODELS for name, info in model.model_fields.items() if info.annotation == tuple[str, ...]
    }
    assert flags_of_several(typer.main.get_command(app)) == {*lists, "--compare"}
    assert lists == {"--target", "--baseline", "--keep", "--prompts", "--lm-eval", "--estimators"}


def test_models_and_prompt_sets_are_known_by_what_their_settings_name() -> None:
    run = RunConfig(model="m", target=("a", "b"), baseline=("c",), keep=("d",), harmless="e", reference="r")
    assert sorted(values_naming("model", run)) == ["m", "r"] and sorted(values_naming("prompts", run)) == ["a", "b", "c", "d", "e"]
    compared = CompareConfig(base="x", derived="y", prompts=("a",))
    assert list(values_naming("model", compared)) == ["x", "y"] and list(values_naming("prompts", compared)) == ["a"]


def test_the_settings_that_may_change_between_resumes_do_not_change_what_is_measured() -> None:
    may = {name for config in RECORDED for name, info in config.model_fields.items() if setting_of(info).may_change}
    assert may == {"edited_engine", "engine_model", "derived_engine_model", "concurrency", "request_timeout", "patience", "transcripts"}


def test_a_required_setting_is_asked_for_by_its_flag() -> None:
    with pytest.raises(InputError, match=r"^--prompts is needed$"):
        build(AuditConfig, None, {"model": "m"})


@pytest.mark.parametrize(
    "toml",
    [
        "strength =",
        "strength: 1",
        "strength = 1\nstrength = 2",
        b"\xff\xfe",
        b'target = "caf\xe9"',
        pytest.param("candidates = " + "1" * 5000, id="huge-number"),
        pytest.param("candidates = " + "[" * 20_000, id="deep"),
    ],
)
def test_what_is_no_toml_is_refused_by_the_files_name(tmp_path: Path, toml: str | bytes) -> None:
    assert "settings.toml: not TOML" in refused(tmp_path, toml)


def test_a_missing_file_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: no such file"):
        build(RunConfig, tmp_path / "none.toml", {"model": "m"})


def test_a_folder_is_no_config_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        build(RunConfig, tmp_path, {"model": "m"})


@pytest.mark.parametrize(("model", "key"), [(RunConfig, "target"), (AuditConfig, "prompts")])
def test_no_sets_at_all_are_refused(tmp_path: Path, model: type[Config], key: str) -> None:
    assert f"--{key}" in refused(tmp_path, f"{key} = []\n", model)


def test_an_empty_model_is_refused() -> None:
    with pytest.raises(InputError, match="--model"):
        build(RunConfig, None, {"model": ""})


def test_a_config_can_not_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        build(RunConfig, None, {"model": "m"}).strength = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_every_setting_is_described_in_a_sentence(model: type[Config]) -> None:
    assert [name for name, info in model.model_fields.items() if not (info.description or "").endswith(".")] == []


def test_every_setting_is_read_somewhere() -> None:
    code = "\n".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py") if CONFIG not in file.parents)
    code += inspect.getsource(CompareConfig.side)  # the two audits that a comparison is
    code += inspect.getsource(EditCommandConfig.output.fget)  # type: ignore[attr-defined]  # what --as and its alias mean
    names = {name for model in MODELS for name in model.model_fields}
    assert sorted(name for name in names if not re.search(rf"\.{name}\b", code)) == []


def test_a_flag_of_several_values_is_repeated_before_each() -> None:
    given = ["run", "--target", "a", "b", "--model", "m", "--keep", "c", "--out", "o"]
    assert repeat_flags(given, SEVERAL) == ["run", "--target", "a", "--target", "b", "--model", "m", "--keep", "c", "--out", "o"]


def test_three_values_and_a_repeated_flag_all_count() -> None:
    assert repeat_flags(["--target", "a", "b", "c", "--target", "d"], SEVERAL) == [
        "--target",
        "a",
        "--target",
        "b",
        "--target",
        "c",
        "--target",
        "d",
    ]


def test_a_value_after_another_flag_is_not_spread() -> None:
    assert repeat_flags(["--target", "a", "--strength", "0.5", "file"], SEVERAL) == ["--target", "a", "--strength", "0.5", "file"]


ARGUMENTS = st.lists(st.sampled_from(["run", "a", "b", "-", "--target", "--keep", "--model", "--no-x", "-h"]), max_size=12)


def valueless(arguments: list[str]) -> bool:
    """Whether a flag that takes several values has none."""
    following = [*arguments, "--end"][1:]
    return any(a in SEVERAL and b.startswith("-") and b != "-" for a, b in zip(arguments, following, strict=True))


@settings(max_examples=300, deadline=None)
@given(ARGUMENTS)
def test_a_flag_without_a_value_is_refused(arguments: list[str]) -> None:
    assume(valueless(arguments))
    with pytest.raises(InputError, match="needs a value"):
        repeat_flags(arguments, SEVERAL)


@settings(max_examples=300, deadline=None)
@given(ARGUMENTS)
def test_spreading_twice_is_spreading_once(arguments: list[str]) -> None:
    assume(not valueless(arguments))
    assert repeat_flags(repeat_flags(arguments, SEVERAL), SEVERAL) == repeat_flags(arguments, SEVERAL)


@settings(max_examples=300, deadline=None)
@given(ARGUMENTS)
def test_spreading_adds_nothing_but_flags_and_keeps_the_order(arguments: list[str]) -> None:
    assume(not valueless(arguments))
    result = iter(repeat_flags(arguments, SEVERAL))
    skipped = []
    for argument in arguments:
        for found in result:
            if found == argument:
                break
            skipped.append(found)
        else:
            raise AssertionError(f"{argument} was lost")
    assert set(skipped) <= set(SEVERAL) and list(result) == []


@settings(max_examples=100, deadline=None)
@given(ARGUMENTS.map(lambda a: [x for x in a if x not in SEVERAL]))
def test_without_such_flags_nothing_changes(arguments: list[str]) -> None:
    assert repeat_flags(arguments, SEVERAL) == arguments
