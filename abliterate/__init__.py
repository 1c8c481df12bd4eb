"""abliterate: find, measure and remove a chosen kind of refusal in open-weight language models.

From Python the stages are functions, each from the results of those before it (``docs/api.md`` shows them at work)::

    load_model, load_set, RoleSets    what is asked, and of whom
    collect                           activations of the sets' prompts
    estimate, candidates, select      directions, the edits that compete, the one that is chosen
    edit_from_direction, Edit         an edit of one's own
    generate, judge, figures          replies (with an edit hooked in, or without), their outcomes, rates with intervals
    edit_checkpoint, verify           the edited checkpoint and its proof
    run, audit, compare, reproduce    the whole commands, told by a config, into a run folder
    report_schema                     what report.json may hold

Importing the package is quick: torch is loaded when a stage is first looked up.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abliterate.api import collect, edit_checkpoint, generate, load_model, verify
    from abliterate.checkpoint.edit import EditResult
    from abliterate.choice.candidates import Candidate, candidates
    from abliterate.choice.select import select
    from abliterate.commands.audit import audit
    from abliterate.commands.compare import compare
    from abliterate.commands.reproduce import reproduce
    from abliterate.commands.run import run
    from abliterate.compute.passes import Model
    from abliterate.config import AuditConfig, CompareConfig, ModelConfig, ReproduceConfig, RunConfig
    from abliterate.directions.activations import Activations, load_activations, save_activations
    from abliterate.directions.estimate import Directions, estimate
    from abliterate.directions.file import load_directions, save_directions
    from abliterate.errors import CheckError, InputError
    from abliterate.measures.summary import figures, judge_all
    from abliterate.model.edit import Edit, edit_from_direction, load_direction, load_edit, save_edit
    from abliterate.outcomes.verdict import OUTCOMES, WITHHELD, Verdict, judge
    from abliterate.prompts import Prompt, PromptSet, RoleSets, load_set
    from abliterate.replies.transcripts import Transcript
    from abliterate.report.schema import report_schema

__version__ = "0.1.0"

# Where each name is defined; its module is imported when the name is first looked up.
_HOMES = {
    "api": ("collect", "edit_checkpoint", "generate", "load_model", "verify"),
    "checkpoint.edit": ("EditResult",),
    "choice.candidates": ("Candidate", "candidates"),
    "choice.select": ("select",),
    "commands.audit": ("audit",),
    "commands.compare": ("compare",),
    "commands.reproduce": ("reproduce",),
    "commands.run": ("run",),
    "compute.passes": ("Model",),
    "config": ("AuditConfig", "CompareConfig", "ModelConfig", "ReproduceConfig", "RunConfig"),
    "directions.activations": ("Activations", "load_activations", "save_activations"),
    "directions.estimate": ("Directions", "estimate"),
    "directions.file": ("load_directions", "save_directions"),
    "errors": ("CheckError", "InputError"),
    "measures.summary": ("figures", "judge_all"),
    "model.edit": ("Edit", "load_direction", "load_edit", "edit_from_direction", "save_edit"),
    "outcomes.verdict": ("OUTCOMES", "WITHHELD", "Verdict", "judge"),
    "prompts": ("Prompt", "PromptSet", "RoleSets", "load_set"),
    "replies.transcripts": ("Transcript",),
    "report.schema": ("report_schema",),
}

__all__ = [
    "OUTCOMES",
    "WITHHELD",
    "Activations",
    "AuditConfig",
    "Candidate",
    "CheckError",
    "CompareConfig",
    "Directions",
    "Edit",
    "EditResult",
    "InputError",
    "Model",
    "ModelConfig",
    "Prompt",
    "PromptSet",
    "ReproduceConfig",
    "RoleSets",
    "RunConfig",
    "Transcript",
    "Verdict",
    "__version__",
    "audit",
    "candidates",
    "collect",
    "compare",
    "edit_checkpoint",
    "edit_from_direction",
    "estimate",
    "figures",
    "generate",
    "judge",
    "judge_all",
    "load_activations",
    "load_direction",
    "load_directions",
    "load_edit",
    "load_model",
    "load_set",
    "report_schema",
    "reproduce",
    "run",
    "save_activations",
    "save_directions",
    "save_edit",
    "select",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for by name."""
    for home, names in _HOMES.items():
        if name in names:
            found = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
