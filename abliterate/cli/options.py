"""Make commands from config models: each field becomes a flag of the same name and a key of ``--config FILE.toml``."""

from __future__ import annotations

import inspect
import tomllib
import types
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from annotated_types import Ge
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from abliterate.compute.launch import own_rank
from abliterate.config import Config, is_url
from abliterate.config.messages import field_of, flag_of, in_plain_words
from abliterate.config.setting import Panel, place_in, setting_of, values_naming
from abliterate.errors import InputError
from abliterate.model.source import check_given
from abliterate.prompts.read import check_named

C = TypeVar("C", bound=Config)
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with the same settings. Flags override it.")]
_FEW = 12  # this many options are shown in one list, without panels
_RANK = 5  # the rank of a command's extra options in their panel (see ``Setting``)


def command(app: typer.Typer, name: str, config: type[C], body: Callable[..., None], help_text: str, **extra: Any) -> None:
    """Register a command with the flags of ``config``, ``--config``, and ``extra`` parameters (name -> annotated type, optional if it
    allows None). It calls ``body`` with the validated config and the extra parameters."""

    def call(**values: Any) -> None:
        others = {key: values.pop(key) for key in extra}
        file = values.pop("config")
        made = build(config, file, {k: v for k, v in values.items() if v not in (None, [])})
        check_there(made)
        body(made, **others)

    placed = [(setting_of(info).place, _parameter(field, info)) for field, info in config.model_fields.items()]
    placed += [(_place(annotation), _extra(key, annotation)) for key, annotation in {"config": ConfigFile, **extra}.items()]
    parameters = [parameter for _, parameter in sorted(placed, key=lambda each: each[0])]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__doc__ = help_text
    app.command(name, cls=Grouped, help=help_text)(call)


class Grouped(TyperCommand):
    """A command whose --help shows its options by panel, or in one list if they are few."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        parameters = self.get_params(ctx)
        panels: dict[str, list[Any]] = {}
        few = len(parameters) <= _FEW
        for parameter in parameters:
            is_argument = parameter.param_type_name == "argument"
            panel = "Arguments" if is_argument else "Options" if few else getattr(parameter, "rich_help_panel", None) or Panel.OTHER
            if (record := parameter.get_help_record(ctx)) is not None:
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


def _extra(name: str, annotation: Any) -> inspect.Parameter:
    """A parameter that is not a setting; optional if its annotated type allows None."""
    may_lack = type(None) in get_args(get_args(annotation)[0])
    return _keyword(name, annotation, None if may_lack else inspect.Parameter.empty)


def _place(annotation: Any) -> tuple[int, int]:
    """The place of such a parameter in --help: arguments come first, options in their panel."""
    info = get_args(annotation)[1]
    return (-1, 0) if isinstance(info, typer.models.ArgumentInfo) else (place_in(info.rich_help_panel or Panel.OTHER), _RANK)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _parameter(name: str, info: FieldInfo) -> inspect.Parameter:
    flag, text = flag_of(name), (info.description or "") + _limits(info)
    panel, names = setting_of(info).panel, setting_of(info).names
    kind, many = _kind(info.annotation)
    if kind is bool:
        option = typer.Option(f"{flag}/--no-{flag.removeprefix('--')}", help=text, show_default=False, rich_help_panel=panel)
        return _keyword(name, Annotated[bool | None, option], None)
    choices = [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []
    metavar = ("SET..." if names == "prompts" else "NAME...") if many else f"<{'|'.join(choices) or kind.__name__}>"
    completing = _completing(choices) if choices else None
    option = typer.Option(flag, help=text, show_default=False, metavar=metavar, autocompletion=completing, rich_help_panel=panel)
    # Every value is passed on as text. The config parses it, so that flags and TOML give the same messages.
    return _keyword(name, Annotated[list[str] | None if many else str | None, option], None)


def _completing(choices: Sequence[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]  # typer finds the parameter by this name


def _limits(info: FieldInfo) -> str:
    """What --help adds to a field's description: whether it is required, its default, and the least value of a number."""
    if info.is_required():
        return " [required]"
    least = next((bound.ge for bound in info.metadata if isinstance(bound, Ge)), 0)
    default = f" [default: {_default(info.default)}]" if info.default not in (None, ()) else ""
    return default + (f" [at least {least}]" if isinstance(least, int) and least > 1 else "")


def _default(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The type of a flag (a Literal stays one), and whether it takes several values."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return (str, True) if get_origin(annotation) is tuple else (annotation, False)


def build(config: type[C], file: Path | None, given: dict[str, Any]) -> C:
    """The validated config from a TOML file and the given flags. Raises InputError that names the key."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise InputError(f"{file}: no such file") from None
        except OSError as error:
            raise InputError(f"{file}: can't be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}: not TOML ({error})") from None
        values = {field_of(key): value for key, value in values.items()}
        for key, value in values.items():
            if isinstance(value, str) and key in config.model_fields and _kind(config.model_fields[key].annotation)[1]:
                values[key] = [value]
    try:
        return config(**{**values, **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{file}: " if file is not None and (not first["loc"] or first["loc"][0] not in given) else ""
        raise InputError(where + in_plain_words(first, config.model_fields)) from None


def check_there(config: Config) -> None:
    """Raise InputError for a missing prompt set or model folder, before torch is imported, which takes seconds.

    Nothing is downloaded. Under torchrun only the first process checks: the others may not have the prompt files.
    """
    if own_rank() or getattr(config, "dry_run", False):  # a dry run reports all problems itself
        return
    for model in values_naming("model", config):
        if not is_url(model):
            check_given(model)
    for prompts in values_naming("prompts", config):
        check_named(prompts)


def flags_of_several(program: Any) -> set[str]:
    """The flags of the program's commands that take several values."""
    return {
        flag for each in program.commands.values() for option in each.params if getattr(option, "multiple", False) for flag in option.opts
    }


def repeat_flags(arguments: Sequence[str], flags: Collection[str]) -> list[str]:
    """Rewrite ``--target a b`` as ``--target a --target b``, for the flags that take several values.

    Raises InputError if such a flag has no value.
    """
    result: list[str] = []
    current: str | None = None
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            if current is not None and result[-1] == current:
                raise InputError(f"{current} needs a value")
            current = argument if argument in flags else None
            result.append(argument)
        elif current is not None and result[-1] != current:
            result += [current, argument]
        else:
            result.append(argument)
    if current is not None and result[-1] == current:
        raise InputError(f"{current} needs a value")
    return result
