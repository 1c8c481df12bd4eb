"""Select the served model that matches the local checkpoint, by what the server reports about each of its models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abliterate.errors import InputError
from abliterate.files import Json
from abliterate.replies.completion import PATH, PLAIN, prompt_tokens, reply_of, request
from abliterate.replies.server import Line, RefusedError, passes
from abliterate.terminal.progress import say

_FOLDER = "its folder"
_SHORT, _LONG = "Hi", "Name three rivers of Europe, and say of each in one sentence where it rises and where it ends."
_CANT = (500, 501)  # statuses of servers that can't load a model or don't know a request


@dataclass(frozen=True)
class Wanted:
    """A model that a server should serve. ``path``: its local folder. ``names``: its Hub id and short names. Neither: any model will do.

    ``certain``: accept only a model whose folder the server reports. ``never``: a model that must not be accepted instead.
    """

    path: Path | None = None
    names: tuple[str, ...] = ()
    certain: bool = False
    never: Wanted | None = None

    def is_called(self, name: str | None) -> bool:
        """Whether a server's name for a model means this model."""
        return name is not None and (self.lies_at(name) or name.casefold() in {own.casefold() for own in self.names})

    def lies_at(self, name: str | None) -> bool:
        if self.path is None or not name:
            return False
        try:
            return Path(name).resolve() == self.path.resolve()
        except (OSError, ValueError):  # the name is too long, or has a null character
            return False


@dataclass(frozen=True)
class Served:
    """A model of a server. ``root``: what it was loaded from, if the server says so. ``by``: how it was chosen. ``extra``: additional
    fields of requests to it."""

    model: str
    root: str | None = None
    owner: str | None = None
    by: str = ""
    extra: Json = field(default_factory=dict)


async def choose(line: Line, url: str, wanted: Wanted, named: str | None) -> Served:
    """Find the wanted model on the server and test it with requests for one token.

    Raises InputError if the model can't be identified, or if it does not get the user's message.
    """
    listed = await _listed(line, named is not None or wanted.path is not None)
    found = await _found(line, url, wanted, named, listed)
    surely = found.by.startswith(_FOLDER)
    if wanted.never is not None and not surely and (wanted.never.is_called(found.model) or wanted.never.is_called(found.root)):
        raise InputError(f"{url} serves {found.model!r}, which is the base and not the edited model; {_how_to_serve(wanted)}")
    served, given = await _tried(line, found)
    await _check_heard(line, url, served, given)
    return served


async def _found(line: Line, url: str, wanted: Wanted, named: str | None, listed: list[Served]) -> Served:
    of_name = None if named is None else next((s for s in listed if s.model == named), Served(named))
    if of_name is not None and wanted.never is None:
        return _chosen(of_name, "--engine-model")
    for by, fits in ((_FOLDER, wanted.lies_at), ("its name", wanted.is_called)):
        for served in listed:
            if fits(served.root) or fits(served.model):
                return _chosen(served, by)
    if wanted.path is not None and await _loads(line, wanted.path):
        return Served(str(wanted.path), str(wanted.path), by=f"{_FOLDER}, loaded on demand")
    if wanted.certain:
        raise InputError(f"{url} doesn't serve the edited model ({_names(listed)}); {_how_to_serve(wanted)}")
    if of_name is not None and of_name in listed:
        return _chosen(of_name, "--engine-model")
    if len(listed) != 1:
        raise InputError(f"{url} serves several models or none ({_names(listed)}); say which one with --engine-model NAME")
    if wanted.path is not None and wanted.never is None:
        say(f"{url}: its only model, {listed[0].model!r}, is used as {wanted.path}; the server does not confirm that it is the same")
    return _chosen(listed[0], "the only one served")


def _chosen(served: Served, by: str) -> Served:
    return Served(served.model, served.root, served.owner, by)


def _how_to_serve(wanted: Wanted) -> str:
    return f"serve {wanted.path} and run the same command again with --edited-engine URL"


def _names(listed: list[Served]) -> str:
    shown = ", ".join(repr(s.model[:80]) for s in listed[:5])
    return f"it lists {shown}{', ...' if len(listed) > 5 else ''}" if listed else "it lists no model"


async def _listed(line: Line, may_be_missing: bool) -> list[Served]:
    """The models that the server lists; ``transformers serve`` fails here if nothing was ever downloaded."""
    try:
        return await line.call("/models", None, _cards, _passes)
    except RefusedError as refused:
        if may_be_missing and refused.status in (404, 405, *_CANT):
            return []
        raise


def _cards(answer: Any) -> list[Served]:
    try:
        cards = [(card["id"], card.get("root"), card.get("owned_by")) for card in answer["data"]]
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"no list of models in {str(answer)[:120]}") from None
    return [Served(str(model), root if isinstance(root, str) else None, str(owner) if owner else None) for model, root, owner in cards]


async def _loads(line: Line, path: Path) -> bool:
    """Whether the server loads the folder that a request names, as ``transformers serve`` does.

    Many servers accept any model name, so a server that also accepts a missing folder proves nothing.
    """
    return not await _answers(line, f"{path}.not-there", {}) and await _answers(line, str(path), {})


async def _answers(line: Line, model: str, extra: Json) -> bool:
    try:
        await _probe(line, model, extra)
    except RefusedError:
        return False
    return True


async def _check_heard(line: Line, url: str, served: Served, short: int | None) -> None:
    """Raises InputError if a long prompt has as many tokens as a short one (``short``; None if the server doesn't say): then the user's
    message is lost, as with a chat template that accepts content only as parts."""
    if short is not None and short == await _probe(line, served.model, served.extra, _LONG):
        raise InputError(
            f"{url}: {served.model!r} gets {short} tokens for a short prompt and for a long one, so its chat template leaves out what "
            "the user says; serve it with another chat template, or with content as parts"
        )


async def _tried(line: Line, served: Served) -> tuple[Served, int | None]:
    """The model with the extra fields for its requests, and its number of tokens for a short prompt.

    A server that accepts penalties beyond OpenAI's is told to use none.
    """
    try:
        given = await _probe(line, served.model, PLAIN)
    except RefusedError as refused:
        if refused.status not in (400, 422, 500):
            raise
        return served, await _probe(line, served.model, {})
    return Served(served.model, served.root, served.owner, served.by, PLAIN), given


async def _probe(line: Line, model: str, extra: Json, prompt: str = _SHORT) -> int | None:
    """Request one token. Returns the number of prompt tokens, if the server reports it. Raises RefusedError."""

    def read(answer: Any) -> int | None:
        try:
            reply_of(answer)
        except ValueError as error:  # {"error": ...} with a 200
            raise RefusedError(200, f"{model!r}: {error}") from None
        return prompt_tokens(answer)

    return await line.call(PATH, request(model, prompt, 1, extra), read, _passes)


def _passes(status: int) -> bool:
    return passes(status) and status not in _CANT
