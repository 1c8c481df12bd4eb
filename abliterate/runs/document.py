"""run.json and cost.json as typed records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from abliterate.files import Count, May, Number, Record
from abliterate.prompts.promptset import PromptsUsed

SCHEMA: Final = "abliterate/run/1"
Kind = Literal["run", "audit", "compare"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_TIME = "The time at which the run began, if the chat template shows the time."


class EngineRecord(Record):
    """The engine that wrote the replies: its kind, and what a server reports about itself."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field(description="transformers, vllm or server.")
    url: str | None = Field(default=None, description="Address of the server.")
    model: str | None = Field(default=None, description="Name of the model on the server.")
    root: str | None = Field(default=None, description="What the server loaded, by its own account.")
    owner: str | None = Field(default=None, description="Who serves it, by its own account.")
    chosen_by: str | None = Field(default=None, description="How the model was chosen among those of the server.")
    version: str | None = Field(default=None, description="Version of the engine.")

    @property
    def writer(self) -> str:
        """What two engines must share to give the same replies: their kind and, for a server, what it loaded."""
        served = self.root or self.model
        return f"{self.kind} ({served})" if served else self.kind


class Resolved(Record):
    """Values chosen for what the settings left open."""

    model_config = ConfigDict(extra="allow")

    device: May[str] = Field(default=None, description="cpu, cuda or mps.")
    dtype: May[str] = Field(default=None, description="Number format of the computation.")
    held: May[str] = Field(default=None, description="whole, block by block, or by its engine.")
    batch_size: int | None = Field(default=None, description="Prompts per batch; null if an engine decides.")
    positions: May[int] = Field(default=None, description="Number of last tokens whose activations are collected.")
    clock: str | None = Field(default=None, description=_TIME)
    threads: May[int] = Field(default=None, description="Threads of the processor.")
    seeds: Mapping[str, int] = Field(description="By what they are for.")
    engines: May[Mapping[str, EngineRecord]] = Field(default=None, description="By model: base, edited.")

    def engine(self, which: str) -> EngineRecord | None:
        """The engine that wrote the replies of the ``base`` or ``edited`` model; None if it is not known."""
        return (self.engines or {}).get(which)


UNRESOLVED = Resolved(seeds={"bootstrap": 0})  # of a model that is not loaded here


class ModelPlace(Record):
    """Another model of the run."""

    model_config = ConfigDict(extra="allow")

    resolved: May[Resolved] = None
    model_path: str | None = Field(description="Its folder.")
    hub_id: str | None = Field(default=None, description="Its name on the Hub.")
    revision: str | None = Field(default=None, description="Commit on the Hub.")


class RunRecord(Record):
    """run.json: settings, what they resolved to, versions, hashes of model and prompts."""

    format: Literal["abliterate/run/1"] = Field(
        validation_alias="schema", serialization_alias="schema", description="Name and version of its schema."
    )
    abliterate: str = Field(description="Version of this program.")
    command: May[Kind] = Field(default=None, description="The command that made the run; absent in records of older versions.")
    settings: Mapping[str, Any] = Field(description="Settings by name; each has a flag of the same name.")
    resolved: Resolved
    model_path: str | None = Field(description="Folder of the model; null if only a server has it.")
    hub_id: str | None = Field(description="Name of the model on the Hub; null for a folder.")
    revision: str | None = Field(description="Commit on the Hub.")
    model_hashes: Mapping[str, Digest] | None = Field(description="BLAKE3 hashes of the model's files; null if only a server has them.")
    prompts: Mapping[str, PromptsUsed] = Field(description="Every prompt set.")
    derived: May[ModelPlace] = Field(default=None, description="The derived model of a comparison.")
    reference: May[ModelPlace] = Field(default=None, description="The reference model, if there is one.")
    versions: Mapping[str, str] = Field(description="Versions of Python and of the libraries.")

    @property
    def models(self) -> list[RunRecord | ModelPlace]:
        """The run's own model and, in a comparison, the derived one."""
        return [self, *([self.derived] if self.derived else [])]

    @property
    def kind(self) -> Kind:
        """The command that made the run; in records of older versions it is told by settings that only that command has."""
        return self.command or ("compare" if "derived" in self.settings else "audit" if "prompts" in self.settings else "run")


class Cost(Record):
    """Seconds by stage, and peak memory: cost.json."""

    seconds: Mapping[str, Number] = Field(description="By stage.")
    peak_rss_bytes: Count = Field(description="Largest memory of the process.")
