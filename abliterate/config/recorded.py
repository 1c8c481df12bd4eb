"""Look up settings by their names in a record (run.json, report.json)."""

from __future__ import annotations

from typing import Any

from abliterate.config.asking import AuditConfig, CompareConfig, RunConfig
from abliterate.config.base import is_url
from abliterate.config.commands import EditCommandConfig
from abliterate.config.setting import SENDS, UNKNOWN, Names, setting_of

RECORDED = (RunConfig, AuditConfig, CompareConfig)  # a run folder records the settings of these commands
_KNOWN = {name: setting_of(field) for config in RECORDED for name, field in config.model_fields.items()}
_OF_EDITS = {name: setting_of(field) for name, field in EditCommandConfig.model_fields.items()}


def may_change(name: str) -> bool:
    """Whether a run may be resumed with another value of this setting."""
    return name in _KNOWN and _KNOWN[name].may_change


def named_by(name: str) -> Names | None:
    """What the value of a setting names: a model, prompt sets, another file, or a model on a server; None if none of these."""
    known = _KNOWN.get(name, _OF_EDITS.get(name))
    return known.names if known else None


def why_not_taken(name: str, value: Any) -> str | None:
    """Why ``reproduce`` does not take this setting from a record, which a stranger may have written; None if it takes it.

    A record may say what is measured and how much of the machine it takes, but it must not run code, reach a server or write files.
    """
    known = _KNOWN.get(name)
    if known is None:
        return UNKNOWN
    if not known.from_record:
        return known.risk
    values = value if isinstance(value, list | tuple) else [value]
    return SENDS if any(isinstance(each, str) and is_url(each) for each in values) else None
