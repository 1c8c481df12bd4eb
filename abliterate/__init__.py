"""abliterate: find, measure and remove a chosen kind of refusal in open-weight language models.

In Python each stage is a function of the results of earlier stages (examples in ``docs/api.md``)::

    load_model, load_set, RoleSets    the model and the prompts
    collect                           activations of the sets' prompts
    estimate, candidates, select      directions, candidate edits, the chosen edit
    edit_from_direction, Edit         an edit of your own
    generate, judge, figures          replies (with or without an edit hooked in), their outcomes, rates with intervals
    edit_checkpoint, verify           the edited checkpoint and its proof
    run, audit, compare, reproduce    whole commands: a config in, a run folder out
    report_schema                     the JSON schema of report.json

Importing the package is quick: torch is loaded when a stage is first used.
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
    from abliterate.outcomes.records import OUTCOMES, WITHHELD
    from abliterate.outcomes.verdict import Verdict, judge
    from abliterate.prompts import Prompt, PromptSet, RoleSets, load_set
    from abliterate.replies.transcripts import Transcript
    from abliterate.report.schema import report_schema

__version__ = "0.1.0"

# Where each name is defined; its module is imported when the name is first used.
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
    "outcomes.records": ("OUTCOMES", "WITHHELD"),
    "outcomes.verdict": ("Verdict", "judge"),
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
    """Import a public name when it is first used."""
    for home, names in _HOMES.items():
        if name in names:
            found = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
