"""The content of run.json: the settings, the model, the prompts, and the values that the settings left open."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import torch

from abliterate import __version__
from abliterate.compute.load import pick_dtype
from abliterate.compute.session import Session
from abliterate.config import AuditConfig, Config, ModelConfig, is_url
from abliterate.files import check_destination
from abliterate.model.chat.clock import reads_clock
from abliterate.model.chat.template import last_tokens
from abliterate.model.source import ModelSource, resolve_model
from abliterate.prompts.promptset import PromptsUsed
from abliterate.runs.document import SCHEMA, Kind, Resolved, RunRecord
from abliterate.runs.folder import file_hashes, versions


def resolved(session: Session, config: ModelConfig, positions: int | None) -> Resolved:
    """The values chosen for what the settings left open. Reads the tokenizer, so that a missing chat template is found early."""
    tokenizer = session.tokenizer()
    elsewhere = isinstance(config, AuditConfig) and config.engine != "transformers"
    by_a_server = isinstance(config, AuditConfig) and is_url(config.engine)
    return Resolved(
        device=str(session.device),
        dtype=str(pick_dtype(config.dtype, session.device) if elsewhere else session.holding.dtype).removeprefix("torch."),
        held="by its engine" if elsewhere else "whole" if session.holding.whole else "block by block",
        batch_size=None if elsewhere else session.batch_size,
        positions=positions or last_tokens(tokenizer, config),
        clock=session.clock.isoformat() if reads_clock(str(tokenizer.chat_template)) and not by_a_server else None,
        threads=torch.get_num_threads(),
        seeds={"bootstrap": 0},
    )


def run_record(
    command: Kind, settings: Config, source: ModelSource | None, prompts: Mapping[str, PromptsUsed], resolved: Resolved
) -> RunRecord:
    """The content of run.json. Without a ``source`` the model is only on a server, and its files are unknown."""
    return RunRecord(
        format=SCHEMA,
        abliterate=__version__,
        command=command,
        settings=settings.model_dump(mode="json"),
        resolved=resolved,
        model_path=str(source.path) if source else None,
        hub_id=source.hub_id if source else None,
        revision=source.revision if source else None,
        model_hashes=file_hashes(source.path) if source else None,
        prompts=prompts,
        versions=versions(),
    )


def open_model(config: ModelConfig, out: Path, clock: datetime | None = None) -> tuple[ModelSource, Session]:
    """Find the model, check its config and the headers of its shards, and check that ``out`` is outside its folder."""
    source = resolve_model(config.model, config.revision)
    session = Session(config, source.path, clock=clock)
    check_destination(out / ".new", source.path)
    return source, session
