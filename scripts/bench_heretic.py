"""Runs Heretic without a terminal, in Heretic's own environment: its questions get their answers from here, everything else is its own.

Not imported by anything here: scripts/bench_peers.py starts it with the interpreter of that environment, in a folder that holds
Heretic's ``config.toml``. All it uses of Heretic are its ``main``, the two functions by which it asks its user, and the study it keeps.

    bench_heretic.py defaults               versions and default settings, as JSON on stdout
    bench_heretic.py study                  a whole study (one that was interrupted goes on); ends at the menu of trials
    bench_heretic.py trials                 what the study holds of each trial, as JSON on stdout
    bench_heretic.py save '{"7": "DIR"}'    the edited model of trial 7, merged, into DIR
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

JOURNALS = "checkpoints"  # Heretic's own default for ``study_checkpoint_dir``
_SHOWN = ("n_trials", "n_startup_trials", "refusal_markers", "system_prompt", "row_normalization", "orthogonalize_direction")
_PACKAGES = ("heretic-llm", "torch", "transformers", "optuna", "peft")
PROCEED, TRIAL, ACTION = (
    "How would you like to proceed?",
    "Which trial do you want to use?",
    "What do you want to do with the decensored model?",
)
SAVE, LEAVE = "Save the model to a local folder", ""


class Answers:
    """What a user would answer who wants the models of some trials saved: ``wanted`` maps their numbers to folders."""

    def __init__(self, wanted: Mapping[int, Path]) -> None:
        self.left = dict(wanted)
        self.folder: Path | None = None

    def select(self, message: str, choices: Sequence[Any]) -> Any:
        """The answer to a question with choices. Raises RuntimeError for a question that isn't known, or a trial that isn't offered."""
        if message == PROCEED:
            return "continue"
        if message == TRIAL:
            return self._trial([choice.value for choice in choices])
        if message == ACTION:
            return SAVE if self.folder is not None else LEAVE
        raise RuntimeError(f"Heretic asks what nobody answers here: {message!r}")

    def _trial(self, offered: Sequence[Any]) -> Any:
        if not self.left:
            return LEAVE
        number = next(iter(self.left))
        self.folder = self.left.pop(number)
        for trial in offered:
            if not isinstance(trial, str) and trial.user_attrs["index"] == number:
                return trial
        raise RuntimeError(f"Heretic doesn't offer trial {number}: it is not on its front")

    def path(self, message: str) -> str:
        """The folder for the trial that was chosen last; asked once for each."""
        assert self.folder is not None, message
        folder, self.folder = self.folder, None
        return str(folder)


def defaults() -> dict[str, Any]:
    """Versions of the packages, and the settings as Heretic has them."""
    from heretic.config import Settings

    fields = Settings.model_fields
    shown = {name: fields[name].default for name in _SHOWN if name in fields}
    versions = {name: version(name) for name in _PACKAGES}
    return {"versions": {"python": platform.python_version(), **versions}, "settings": shown}


def run(wanted: Mapping[int, Path]) -> None:
    """Heretic, from its beginning to its menu of trials; then the models of the wanted ones. Raises RuntimeError where one is missing."""
    import heretic.main as heretic

    answers = Answers(wanted)
    heretic.prompt_select, heretic.prompt_path = answers.select, answers.path
    sys.argv = ["heretic"]  # all its settings are in config.toml
    heretic.main()
    if missing := [str(folder) for folder in wanted.values() if not list(folder.glob("*.safetensors"))]:
        raise RuntimeError(f"Heretic has not saved {', '.join(missing)}; its own output says why")


def trials() -> dict[str, Any]:
    """The study: whether it is finished, and every complete trial with its figures, parameters, and seconds."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import TrialState

    (journal,) = Path(JOURNALS).glob("*.jsonl")
    storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal))))
    (study,) = storage.get_all_studies()
    found = storage.get_all_trials(study._study_id, states=(TrialState.COMPLETE,))
    rows = [{**t.user_attrs, "seconds": (t.datetime_complete - t.datetime_start).total_seconds()} for t in found]
    settings = json.loads(study.user_attrs["settings"])
    return {"finished": study.user_attrs["finished"], "batch_size": settings["batch_size"], "seed": settings["seed"],
            "response_prefix": settings["response_prefix"], "trials": rows}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """One of the four."""
    command, *rest = arguments
    if command == "study":
        run({})
    elif command == "save":
        run({int(number): Path(folder) for number, folder in json.loads(rest[0]).items()})
    else:
        print(json.dumps({"defaults": defaults, "trials": trials}[command](), default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
