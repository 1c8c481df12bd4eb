"""Choose among the chat templates in a model's folder: the tokenizer's own, else its processor's; by name if there are several."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abliterate.errors import InputError
from abliterate.terminal.progress import say_once

# Files in which a processor (of a vision-language model) keeps its template, in the order in which they are tried.
_PROCESSORS = ("chat_template.json", "processor_config.json")
# Words in the names of templates for other uses than conversation, and for conversation; earlier words take precedence.
_OTHER_USES = ("agent", "citation", "citations", "document", "documents", "function", "functions", "rag", "search", "tool", "tools")
_CONVERSATION = ("default", "chat", "chatml", "instruct", "conversation", "assistant")


def chosen(own: Any, path: Path) -> str | None:
    """The template to use; None if the folder has none. ``own``: the tokenizer's, one text or several by name.

    If there are several and none is named ``default``, the choice is printed. Raises InputError with their names if none can be chosen.
    """
    found = _by_name(own or _of_a_processor(path))
    if not isinstance(found, Mapping):
        return found
    name = _named(found)
    if name is None:
        raise InputError(
            f"{path}: has the chat templates {', '.join(sorted(found))}, and none is named default; put the right one into the folder as "
            "chat_template.jinja"
        )
    if name != "default":
        say_once(f"{path}: none of its chat templates ({', '.join(sorted(found))}) is named default; {name!r} is used")
    return str(found[name])


def _named(templates: Mapping[str, str]) -> str | None:
    """``default``, the only one, the only one that is not for another use, or the first whose name suggests conversation."""
    if len(templates) == 1 or "default" in templates:
        return "default" if "default" in templates else next(iter(templates))
    words = {name: set(re.split(r"[^a-z]+", name.lower())) for name in templates}
    left = {name: found for name, found in words.items() if not found.intersection(_OTHER_USES)}
    if len(left) == 1:
        return next(iter(left))
    speaking = ([name for name, found in left.items() if word in found] for word in _CONVERSATION)
    return next((names[0] for names in speaking if len(names) == 1), None)


def _of_a_processor(path: Path) -> Any:
    """The template in the first processor file that has one."""
    for file in (path / name for name in _PROCESSORS):
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise InputError(f"{file}: not JSON; download it again") from None
        if isinstance(content, dict) and content.get("chat_template"):
            return content["chat_template"]
    return None


def _by_name(found: Any) -> str | dict[str, str] | None:
    """One template, or several by name; files store several as an object or as a list of objects."""
    if isinstance(found, list):
        found = {t["name"]: t["template"] for t in found if isinstance(t, dict) and {"name", "template"} <= t.keys()}
    if isinstance(found, Mapping):
        return {str(name): str(template) for name, template in found.items()} or None
    return str(found) if found else None
