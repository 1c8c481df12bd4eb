"""The engine that generates a model's replies: transformers or vLLM in this process, or a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from abliterate.compute.load import pick_device, pick_dtype
from abliterate.compute.passes import Advance
from abliterate.compute.session import Session
from abliterate.config import AuditConfig, RunConfig, is_url
from abliterate.errors import InputError
from abliterate.model.chat.clock import reads_clock
from abliterate.model.chat.ends import advice_of, end_ids
from abliterate.model.chat.thinking import closing, marks_are_dropped, opens_thought
from abliterate.model.names import HUB_IDS
from abliterate.model.source import ModelSource
from abliterate.prompts import PromptSet
from abliterate.replies.asking import Asking, find
from abliterate.replies.generate import generate
from abliterate.replies.samples import sampling_of
from abliterate.replies.served import Wanted
from abliterate.replies.server import AwayError, RefusedError, Server
from abliterate.replies.transcripts import Transcript
from abliterate.replies.vllm_engine import VllmEngine, check_installed, version
from abliterate.runs.document import EngineRecord
from abliterate.terminal.progress import say

Settings = RunConfig | AuditConfig
_GREETING = 5.0  # seconds to wait for a server to answer at all


@dataclass(frozen=True)
class Engine:
    """``described``: its entry in run.json. ``answer``: generates replies to prompt sets, writes each to a file, and reports progress."""

    described: EngineRecord
    answer: Callable[[Sequence[PromptSet], Path, Advance], list[Transcript]]


def wanted_of(source: ModelSource) -> Wanted:
    """The names that a server may use for a model: its folder, its Hub id (with or without the owner), or a short name."""
    names = {source.given} - {str(source.path)}
    if source.hub_id is not None:
        names |= {source.hub_id, source.hub_id.rpartition("/")[2], *(short for short, hub_id in HUB_IDS.items() if hub_id == source.hub_id)}
    return Wanted(source.path, tuple(sorted(names)))


def foresee(config: Settings) -> None:
    """Check an engine before the run needs it.

    Raises InputError if vLLM is not installed, the server rejects the key, or the engine can't follow --thinking. A server that does
    not answer yet only causes a notice.
    """
    _check_thinking(config, config.engine)
    if config.engine == "vllm":
        check_installed()
    if is_url(config.engine):
        asyncio.run(_greet(Server(config.engine, request_timeout=_GREETING, patience=0.0)))


def _check_thinking(config: Settings, engine: str) -> None:
    """Raises InputError if the engine can't follow --thinking: a server applies the chat template itself."""
    if is_url(engine) and config.thinking != "on":
        raise InputError(f"--thinking {config.thinking}: a server applies the chat template itself; use --engine transformers")
    if config.thought_budget is not None and (engine != "transformers" or config.settle):
        raise InputError(f"--thinking {config.thinking} needs --engine transformers without --settle")


async def _greet(server: Server) -> None:
    try:
        async with server.connected() as line:
            await line.call("/models", None, lambda answer: None)
    except AwayError:
        say(f"{server.url}: no server answers yet; it must be up when the model's replies are generated")
    except RefusedError as refused:
        if refused.status in (401, 403):
            raise


def engine_of(config: Settings, session: Session | None, wanted: Wanted, url: str | None = None) -> Engine:
    """The engine for a model: the one that ``config`` names, or the server at ``url``. Without a ``session`` only the server has weights.

    Raises InputError if the server can't be reached or does not serve the wanted model.
    """
    where = url or config.engine
    _check_thinking(config, where)
    if is_url(where):
        return _served(config, session, wanted, where)
    if session is None:
        raise InputError(f"--engine {where} needs the model's folder")
    if where == "vllm":
        return _vllm(config, session)
    here, sampling = session, sampling_of(config)
    length, settle, budget = config.max_new_tokens, config.settle, config.thought_budget
    return Engine(
        EngineRecord(kind="transformers"),
        lambda sets, path, advance: generate(here.model, sets, path, length, advance, settle, budget, sampling),
    )


def reply_length(config: Settings, session: Session) -> int:
    """Maximum tokens of a reply that this process generates, thought and answer together; 0 if a server generates it."""
    if is_url(config.engine):
        return 0
    most = (session.longest if config.engine == "transformers" else None) or config.max_new_tokens
    answer, budget = min(config.max_new_tokens, most), config.thought_budget
    return answer if budget is None else answer + min(budget, session.longest or budget) + len(closing(session.tokenizer()))


def edited_engine(config: RunConfig, session: Session, source: ModelSource, base: EngineRecord | None) -> Engine:
    """The engine for the edited checkpoint of ``source``. ``base``: the entry in run.json of the engine that the base used.

    A server must list the checkpoint's folder, unless --edited-engine names it. A model known to be the base is refused in any case.
    """
    url = config.edited_engine or config.engine
    asked = {name for name in (base.model, base.root) if name} if base and base.url == url else set()
    never = wanted_of(source)
    never = replace(never, names=(*never.names, *sorted(asked)))
    return engine_of(config, session, Wanted(session.folder.path, certain=config.edited_engine is None, never=never), url)


def _vllm(config: Settings, session: Session) -> Engine:
    check_installed()
    session.release()
    device = pick_device(config.device)
    tokenizer = session.tokenizer()
    engine = VllmEngine(
        folder=session.folder.path,
        tokenizer=tokenizer,
        dtype=str(pick_dtype(config.dtype, device)).removeprefix("torch."),
        max_new_tokens=config.max_new_tokens,
        tensor_parallel=config.tensor_parallel,
        pipeline_parallel=config.pipeline_parallel,
        trust_remote_code=config.trust_remote_code,
        ends=end_ids(advice_of(session.folder), tokenizer),
        sampling=sampling_of(config),
    )
    return Engine(EngineRecord(kind="vllm", version=version()), engine.answer)


def _served(config: Settings, session: Session | None, wanted: Wanted, url: str) -> Engine:
    server = Server(url, config.concurrency, float(config.request_timeout), float(config.patience))
    opened = False
    if session is not None:
        session.release()  # the server may need the memory
        tokenizer = session.tokenizer()
        opened = opens_thought(tokenizer)
        if marks_are_dropped(tokenizer):
            say(f"{url}: servers drop the special tokens around this model's thoughts; start the server with its reasoning parser")
        if reads_clock(str(tokenizer.chat_template)):
            say(f"{url}: the model's chat template inserts the server's current time, so the same prompts differ from request to request")
    served = find(server, wanted, config.engine_model)
    described = EngineRecord(kind="server", url=url, model=served.model, root=served.root, owner=served.owner, chosen_by=served.by)
    return Engine(described, Asking(server, served, config.max_new_tokens, opened, sampling_of(config)).answer)
