"""Which tensors of an architecture write into the residual stream: a table (``layouts.toml``), keyed by ``model_type``.

The editor uses the tensors' names on disk, hooks use the modules' names in memory; a layout has both. In a name inside a block,
the numbers of experts are written ``*``: ``mlp.experts.*.down_proj.weight``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from abliterate.errors import InputError
from abliterate.model.layout_table import table
from abliterate.model.tensor_names import in_memory, template

Component = Literal["attention", "mlp"]
COMPONENTS: tuple[Component, ...] = ("attention", "mlp")


class _Entry(BaseModel):
    """A table of a layout file; unknown keys and values of the wrong type are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class WriterEntry(_Entry):
    """A writer as written in a layout file."""

    weight: str
    axis: Literal[0, 1, 2] = 0
    bias: str | None = None
    norm: str | Annotated[tuple[str, ...], Field(strict=False)] = ()
    offset: Literal[0, 1] = 0
    module: str | None = None


def _as_table(writer: Any) -> Any:
    """Expand a writer's bare name to a table with its ``.weight``."""
    return {"weight": f"{writer}.weight"} if isinstance(writer, str) else writer


Names = Annotated[tuple[str, ...], Field(strict=False)]
Writers = Annotated[tuple[Annotated[WriterEntry, BeforeValidator(_as_table)], ...], Field(strict=False)]
Block = Annotated[str, Field(pattern=r"^[^{}]+\{\}$")]


class LayoutEntry(_Entry):
    """A family as written in a layout file; the keys are explained in layouts.toml."""

    types: Names = ()
    block: Block
    block_module: Block | None = None
    embedding: str
    embedding_module: str | None = None
    embedding_norm: str | None = None
    positions: str | None = None
    unembedding: str
    attention: Writers
    mlp: Writers
    mtp: Names = ()
    mtp_others: Names = ()
    mtp_block: Block | None = None
    mtp_root: Names = ()


@dataclass(frozen=True)
class Writer:
    """A weight whose product is added to the residual stream; all names are relative to its block.

    ``axis``: the axis of the stored tensor that has size d_model (the bias: its last axis). ``norms`` are between the writer and the
    stream, from the inside out, and multiply by their weight plus ``offset``. ``module``: whose output in memory is what it writes.
    """

    weight: str
    component: Component
    axis: int = 0
    bias: str | None = None
    norms: tuple[str, ...] = ()
    offset: float = 0.0
    module: str = ""


@dataclass(frozen=True)
class Layout:
    """Names of a family's writers, blocks and embeddings; ``{}`` in a block's name is its number."""

    name: str
    writers: tuple[Writer, ...]
    block: str = "model.layers.{}"
    block_module: str = "model.layers.{}"
    embedding: str = "model.embed_tokens.weight"
    embedding_module: str = "model.embed_tokens"
    unembedding: str = "lm_head.weight"
    positions: str | None = None
    embedding_norm: str | None = None
    mtp: tuple[str, ...] = ()
    mtp_others: tuple[str, ...] = ()
    mtp_block: str | None = None
    mtp_root: tuple[str, ...] = ()

    @cached_property
    def _blocks(self) -> re.Pattern[str]:
        names = [self.block, *([self.mtp_block] if self.mtp_block else [])]
        return re.compile("|".join("(?:" + re.escape(n).replace(r"\{\}", r"(\d+)") + r"\.(.+))" for n in names))

    @cached_property
    def _by_weight(self) -> dict[str, tuple[Writer, bool]]:
        found = {}
        for writer in self.writers:
            found[writer.weight] = (writer, False)
            if writer.bias:
                found[writer.bias] = (writer, True)
        for module in self.mtp:
            found[f"{module}.weight"] = (Writer(f"{module}.weight", "mlp", module=module), False)
        return found

    @property
    def positions_module(self) -> str | None:
        return self.positions.removesuffix(".weight") if self.positions else None

    @cached_property
    def _places(self) -> dict[str, tuple[int, str, bool] | None]:
        return {}

    def in_block(self, name: str) -> tuple[int, str, bool] | None:
        """The block's number, the name inside it and whether it is in an ``mtp_block``; None for a tensor outside the blocks."""
        if name not in self._places:  # a large model has a hundred thousand names, and each is looked up many times
            self._places[name] = self._place(name)
        return self._places[name]

    def _place(self, name: str) -> tuple[int, str, bool] | None:
        match = self._blocks.fullmatch(name)
        if match is None:
            return None
        number, inner, *other = match.groups()
        return (int(number), inner, False) if number is not None else (int(other[0]), other[1], True)

    def writer_of(self, inner: str) -> tuple[Writer, bool] | None:
        """The writer that a tensor inside a block belongs to, and whether it is the bias; None if there is no such writer."""
        return self._by_weight.get(template(inner))

    def written_by(self, layer: int, names: Collection[str]) -> dict[str, Component]:
        """The modules among ``names`` (all of a model's) whose outputs block ``layer`` adds to the stream, each with its component."""
        block = in_memory(self.block_module.format(layer), names)
        components: dict[str, set[Component]] = {}
        for writer in self.writers:
            components.setdefault(writer.module, set()).add(writer.component)
        found: dict[str, Component] = {}
        for writer in self.writers:
            module, inner = f"{block}.{writer.module}", ".".join(writer.weight.split(".")[:2])
            # A module may be a mixer in some blocks and a feed-forward part in others; its submodules show which.
            if module in names and (len(components[writer.module]) == 1 or f"{block}.{inner}" in names):
                found.setdefault(module, writer.component)
        return found


def aliased(model_type: str) -> str:
    """The architecture that a config's ``model_type`` stands for: the name itself, or the one that it is an alias of."""
    return str(table()["aliases"].get(model_type, model_type))


def refusal_of(model_type: str) -> str | None:
    """Why no edit of an architecture's writers is exact; None if the table has no reason."""
    reason = table()["refused"].get(model_type)
    return None if reason is None else str(reason)


def layout_for(model_type: str) -> Layout | None:
    """The table's layout of an architecture; None if it has none."""
    return _families().get(aliased(model_type))


def known_types() -> list[str]:
    """Every ``model_type`` in the table."""
    return sorted(_families())


def guess_table() -> dict[str, Any]:
    """The names to try for an architecture that no family lists."""
    found: dict[str, Any] = table()["guess"]
    return found


def load_layout(path: Path) -> Layout:
    """A user's layout: a TOML file with the keys of one family. Raises InputError saying what is wrong with it."""
    try:
        entry = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error})") from None
    return layout_from(path.stem, entry, str(path))


def layout_from(name: str, entry: Mapping[str, Any], where: str = "") -> Layout:
    """A layout from a family's table. Raises InputError for an unknown or malformed key."""
    try:
        given = LayoutEntry(**{**table()["defaults"], **entry})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "layout"
        if first["type"] == "extra_forbidden":
            fields = WriterEntry.model_fields if len(first["loc"]) > 1 else LayoutEntry.model_fields
            raise InputError(f"{where or name}: unknown key {key!r}; known: {', '.join(sorted(fields))}") from None
        raise InputError(f"{where or name}: {key}: {first['msg'].replace('tuple', 'list')}") from None
    return Layout(
        name=name,
        writers=tuple(made for component in COMPONENTS for made in map(partial(_writer, component), getattr(given, component))),
        block=given.block,
        block_module=given.block_module or given.block,
        embedding=f"{given.embedding}.weight",
        embedding_module=given.embedding_module or given.embedding,
        unembedding=f"{given.unembedding}.weight",
        positions=None if given.positions is None else f"{given.positions}.weight",
        embedding_norm=given.embedding_norm,
        mtp=given.mtp,
        mtp_others=given.mtp_others,
        mtp_block=given.mtp_block,
        mtp_root=given.mtp_root,
    )


def _writer(component: Component, given: WriterEntry) -> Writer:
    norms = (given.norm,) if isinstance(given.norm, str) else given.norm
    bias = given.bias or (given.weight.removesuffix(".weight") + ".bias" if given.weight.endswith(".weight") else None)
    module = given.module or (norms[-1] if norms else given.weight.partition(".")[0])
    return Writer(given.weight, component, given.axis, bias, norms, float(given.offset), module)


@cache
def _families() -> dict[str, Layout]:
    made: dict[str, Layout] = {}
    for name, entry in table()["families"].items():
        layout = layout_from(name, entry)
        for model_type in entry["types"]:
            if model_type in made:
                raise ValueError(f"layouts.toml names {model_type} twice")
            made[model_type] = layout
    return made
