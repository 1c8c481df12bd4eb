"""The whole report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field

from abliterate.checkpoint.records import EditSummary, Weights
from abliterate.choice.records import Selection
from abliterate.directions.document import DirectionsQuality
from abliterate.files import May, Record, Several
from abliterate.measures.parts.consistency import Consistency
from abliterate.measures.parts.contrast import AgainstControl
from abliterate.measures.parts.elicitation import Elicitation
from abliterate.measures.parts.moved import Benchmarks, Controls, Drift, Recovery
from abliterate.measures.parts.paired import KeepTest, UnchangedTest
from abliterate.measures.parts.sets import Row, SetEntry, Topic
from abliterate.measures.parts.thoughts import ThoughtByAnswer
from abliterate.report.tree.judge import JudgeRecord
from abliterate.runs.document import Cost, RunRecord

SCHEMA: Final = "abliterate/report/1"


class Report(Record):
    """Everything that run, audit and compare measured. What was not measured is null, and its path is listed in not_measured."""

    format: Literal["abliterate/report/1"] = Field(
        validation_alias="schema", serialization_alias="schema", description="Name and version of this schema."
    )
    run: RunRecord
    sets: Mapping[str, SetEntry] = Field(description="Each prompt set by its name.")
    by_topic: Mapping[str, Mapping[str, Topic]] = Field(description="Withheld by set and topic, or by category if prompts have no topic.")
    tables: Mapping[str, Several[Row]] = Field(
        description="By set: counts of outcomes by topic and language; no rows if prompts have no topics."
    )
    against_control: Several[AgainstControl] | None = Field(
        description="Two sets whose prompts name each other as pair, a row each; null if there are none."
    )
    consistency: Consistency | None = Field(
        default=None, description="With --samples: how far sampled replies support the answers; else null."
    )
    thought_by_answer: Mapping[str, ThoughtByAnswer] | None = Field(description="By set; null if no model thinks.")
    unchanged: Several[UnchangedTest] | None = Field(
        description="Tests that withheld and degenerate of baseline and harmless sets did not rise; null in an audit."
    )
    keep_test: KeepTest | None = Field(description="The test of the first keep set.")
    keep_tests: Several[KeepTest] = Field(description="The same test for each keep set.")
    controls: Controls | None = Field(description="The edit beside edits along random directions; null but in a run.")
    recovery: Recovery | None = Field(default=None, description="With --reference: how much of its behaviour comes back; else null.")
    elicitation: Elicitation | None = Field(
        default=None, description="With --elicit: whether the model knows the facts that it withholds; else null."
    )
    drift: Drift | None = Field(description="How far the edited model moved on harmless prompts; null in an audit.")
    benchmarks: Benchmarks | None = Field(description="With --lm-eval: scores before and after; else null.")
    selection: Selection | None = Field(description="How the edit was chosen; null but in a run.")
    edit: EditSummary | None = Field(description="The edit and its proof; null in an audit.")
    not_measured: Several[str] = Field(description="Paths of everything that is null, but for rows of tables and of against_control.")
    judge: May[JudgeRecord] = None
    weights: May[Weights] = Field(
        default=None, description="compare only: what differs between the two checkpoints' weights (each tensor: weights.json)."
    )
    directions: DirectionsQuality | None = Field(default=None, description="run only: how good each estimate of the direction is.")
    cost: Cost

    @property
    def two_models(self) -> bool:
        """Whether the report has a before and an after."""
        return self.edit is not None or any(entry.edited is not None for entry in self.sets.values())
