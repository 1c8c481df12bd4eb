"""Commands out of config models: every field becomes a flag of the same name, and a key of ``--config FILE.toml``."""

from __future__ import annotations

import inspect
import tomllib
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from abliterate.config import Config
from abliterate.errors import InputError

C = TypeVar("C", bound=Config)


def command(app: typer.Typer, name: str, config: type[C], body: Callable[..., None], help_text: str, **extra: Any) -> None:
    """Register a command: the flags of ``config``, ``--config``, and ``extra`` parameters (name -> annotated type; one that may be None
    may be left out).

    ``body`` is called with the validated config and the extra parameters.
    """

    def call(**values: Any) -> None:
        others = {key: values.pop(key) for key in extra}
        file = values.pop("config")
        body(build(config, file, {k: v for k, v in values.items() if v not in (None, [])}), **others)

    parameters = [_parameter(field, info) for field, info in config.model_fields.items()]
    toml = Annotated[Path | None, typer.Option("--config", help="TOML file with the same keys; flags win over it.")]
    parameters.append(_keyword("config", toml, None))
    needed = inspect.Parameter.empty
    parameters += [_keyword(key, annotation, None if _may_lack(annotation) else needed) for key, annotation in extra.items()]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__doc__ = help_text
    app.command(name, help=help_text)(call)


def _may_lack(annotation: Any) -> bool:
    """Whether an annotated type allows None."""
    return type(None) in get_args(get_args(annotation)[0])


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _parameter(name: str, info: FieldInfo) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    shown = "" if info.is_required() else f" [default: {_default(info.default)}]" if info.default not in (None, ()) else ""
    text = (info.description or "") + shown
    kind, many = _kind(info.annotation)
    if kind is bool:
        option = typer.Option(f"{flag}/--no-{name.replace('_', '-')}", help=text, show_default=False)
    else:
        option = typer.Option(flag, help=text, show_default=False, metavar="SET..." if many else None)
    annotation = list[str] | None if many else kind | None
    return _keyword(name, Annotated[annotation, option], None)


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
        key = str(first["loc"][0]) if first["loc"] else "config"
        where = f"{file}: " if file is not None and key not in given else ""
        if first["type"] == "missing":
            raise InputError(f"{where}--{key.replace('_', '-')} is needed") from None
        if first["type"] == "extra_forbidden":
            raise InputError(f"{where}no setting {key!r}; known: {', '.join(config.model_fields)}") from None
        raise InputError(f"{where}--{key.replace('_', '-')} {first['input']!r}: {first['msg']}") from None


def spread(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
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
