"""A setting: a field of a config model, together with all that the command line and the run folder need to know about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypedDict, Unpack, cast

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

Names = Literal["model", "prompts", "file", "served"]
UNKNOWN = "its effect is unknown"
SENDS = "it sends the prompts and an API key to a server"
_KEY = "setting"


class Panel(StrEnum):
    """The panels of --help, in the order in which they are shown."""

    MAIN = "Main options"
    EDIT = "Edit"
    CHOICE = "Choosing the edit"
    MODEL = "Model"
    REPLIES = "Replies"
    REPORT = "Report"
    OTHER = "Other options"


@dataclass(frozen=True)
class Setting:
    """What is known about a setting besides its type, default and description.

    ``panel`` and ``rank`` give its place in --help: lower ranks come first, equal ranks keep the order of the fields. ``names`` says what
    its value names: a model, prompt sets, another file (or database, or task), or a model on a server. ``may_change`` allows another
    value when a run is resumed, since the value doesn't change what is measured (which model a server serves is compared separately).
    ``from_record`` lets ``reproduce`` take the value from a record, which a stranger may have written; if it is false, only the command
    line may set it, and ``risk`` says what the value could do.
    """

    panel: Panel
    rank: int
    names: Names | None
    may_change: bool
    from_record: bool
    risk: str

    @property
    def place(self) -> tuple[int, int]:
        """The sort key for the order of --help."""
        return place_in(self.panel), self.rank


class Constraints(TypedDict, total=False):
    """Limits on a value, as pydantic's ``Field`` takes them."""

    ge: float
    gt: float
    le: float
    lt: float
    min_length: int
    pattern: str


def setting(
    default: Any = ...,
    *,
    description: str,
    panel: Panel,
    rank: int = 10,
    names: Names | None = None,
    may_change: bool = False,
    from_record: bool = False,
    risk: str = UNKNOWN,
    **constraints: Unpack[Constraints],
) -> Any:
    """A field of a config model; without a default it is required. For the other arguments see ``Setting``."""
    known = Setting(panel, rank, names, may_change, from_record, risk)
    return Field(default, description=description, json_schema_extra=cast(Any, {_KEY: known}), **constraints)


def setting_of(field: FieldInfo) -> Setting:
    """What is known about a field that ``setting`` made."""
    return cast(Mapping[str, Setting], field.json_schema_extra)[_KEY]


def place_in(panel: Panel) -> int:
    """A panel's position in --help."""
    return list(Panel).index(panel)


def values_naming(what: Names, config: BaseModel) -> Iterator[str]:
    """Every model, prompt set or other file that the settings of a config name."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if setting_of(field).names == what and value is not None:
            yield from [value] if isinstance(value, str) else cast(Iterable[str], value)
