"""Commands out of config models: every field becomes a flag of the same name, and a key of ``--config FILE.toml``."""

from __future__ import annotations

import inspect
import tomllib
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from annotated_types import Ge
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from abliterate.compute.launch import own_rank
from abliterate.config import Config, is_url
from abliterate.config.messages import flag_of, in_plain_words
from abliterate.config.panels import panel_of, place_of
from abliterate.errors import InputError
from abliterate.model.source import check_given
from abliterate.prompts.read import check_named

C = TypeVar("C", bound=Config)
_FEW = 12  # options that need no panels
_MODELS, _SETS = ("model", "base", "derived", "reference", "beside"), ("target", "baseline", "keep", "prompts")


def command(app: typer.Typer, name: str, config: type[C], body: Callable[..., None], help_text: str, **extra: Any) -> None:
    """Register a command: the flags of ``config``, ``--config``, and ``extra`` parameters (name -> annotated type; one that may be None
    may be left out).

    ``body`` is called with the validated config and the extra parameters.
    """

    def call(**values: Any) -> None:
        others = {key: values.pop(key) for key in extra}
        file = values.pop("config")
        made = build(config, file, {k: v for k, v in values.items() if v not in (None, [])})
        check_there(made)
        body(made, **others)

    parameters = [_parameter(field, info) for field, info in config.model_fields.items()]
    toml = Annotated[Path | None, typer.Option("--config", help="TOML file with the same keys; flags win over it.")]
    parameters.append(_keyword("config", toml, None))
    needed = inspect.Parameter.empty
    parameters += [_keyword(key, annotation, None if _may_lack(annotation) else needed) for key, annotation in extra.items()]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__doc__ = help_text
    app.command(name, cls=Grouped, help=help_text)(call)


class Grouped(TyperCommand):
    """A command whose --help shows its options panel by panel, or in one list where they are few."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        found = {str(param.name): param for param in self.get_params(ctx)}
        panels: dict[str, list[Any]] = {"Arguments": []}
        few = len(found) <= _FEW
        for name in sorted(found, key=place_of):
            is_argument = found[name].param_type_name == "argument"
            panel = "Arguments" if is_argument else "Options" if few else panel_of(name)
            if (record := found[name].get_help_record(ctx)) is not None:
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records)


def _may_lack(annotation: Any) -> bool:
    """Whether an annotated type allows None."""
    return type(None) in get_args(get_args(annotation)[0])


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _parameter(name: str, info: FieldInfo) -> inspect.Parameter:
    flag, text = flag_of(name), (info.description or "") + _limits(info)
    kind, many = _kind(info.annotation)
    if kind is bool:
        option = typer.Option(f"{flag}/--no-{flag.removeprefix('--')}", help=text, show_default=False)
        return _keyword(name, Annotated[bool | None, option], None)
    choices = [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []
    metavar = "SET..." if many else f"<{'|'.join(choices) or kind.__name__}>"
    option = typer.Option(flag, help=text, show_default=False, metavar=metavar, autocompletion=_completing(choices) if choices else None)
    # The text is taken as it is: the config reads it, so that all that may be wrong with it is said in one way.
    return _keyword(name, Annotated[list[str] | None if many else str | None, option], None)


def _completing(choices: Sequence[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]  # typer knows it by this name


def _limits(info: FieldInfo) -> str:
    """What --help says behind a field's description: whether it is needed, its default, and the least that a number may be."""
    if info.is_required():
        return " [required]"
    least = next((bound.ge for bound in info.metadata if isinstance(bound, Ge)), 0)
    default = f" [default: {_default(info.default)}]" if info.default not in (None, ()) else ""
    return default + (f" [at least {least}]" if isinstance(least, int) and least > 1 else "")


def _default(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The flag's type (a Literal stays one), and whether it takes several values."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return (str, True) if get_origin(annotation) is tuple else (annotation, False)


def build(config: type[C], file: Path | None, given: dict[str, Any]) -> C:
    """The validated config from a TOML file and the flags given. Raises InputError naming the key."""
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
        values = {key.replace("-", "_"): value for key, value in values.items()}
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
    """Raise InputError for a prompt set or a model's folder that isn't there: known before torch is imported, which takes seconds.

    Nothing is fetched. Under torchrun only the first process has the prompts.
    """
    given = dict(config)
    if own_rank() or given.get("dry_run"):  # a dry run tells all that stands against it itself
        return
    for name in (str(given[key]) for key in _MODELS if given.get(key) is not None):
        if not is_url(name):
            check_given(name)
    for key in _SETS:
        for name in given.get(key) or ():
            check_named(name)
    if "harmless" in given:
        check_named(given["harmless"])


def repeat_flags(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
    """``--target a b`` as ``--target a --target b``, for the flags that take several values.

    Raises InputError where such a flag has none.
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
