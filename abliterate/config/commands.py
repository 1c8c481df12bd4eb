"""The settings of the other commands: edit, verify, push, score, report, chat, reproduce and directions."""

from __future__ import annotations

from pydantic import field_validator, model_validator
from pydantic_core import PydanticCustomError

from abliterate.config.base import Config, Sets, is_url
from abliterate.config.formats import ChosenFormat, chosen_format, described
from abliterate.config.model import FolderConfig, HeldConfig, SourceConfig
from abliterate.config.replies import ServerConfig, Transcripts
from abliterate.config.setting import Panel, setting
from abliterate.config.stages import ESTIMATORS, EditConfig, known_estimators
from abliterate.errors import InputError

_NOT_FROM_A_RECORD = "for safety, the recorded value is not used."


class EditCommandConfig(EditConfig, SourceConfig):
    """Settings of edit: only the edit."""

    direction: str | None = setting(
        None,
        description="File of the direction to remove (safetensors, [d_model] or [layer, d_model]).",
        panel=Panel.MAIN,
        rank=4,
        names="file",
    )
    plan: str | None = setting(
        None,
        description="The plan.safetensors of a run: directions, and strengths by layer and component. It is not the output of the command "
        "plan.",
        panel=Panel.MAIN,
        rank=4,
        names="file",
    )
    as_: str = setting("checkpoint", description=f"Format of the output. {described()}.", panel=Panel.EDIT)
    as_adapter: bool | None = setting(None, description="Alias of --as adapter.", panel=Panel.EDIT)

    @property
    def output(self) -> ChosenFormat:
        """The format in which the edit is written."""
        return ChosenFormat("adapter") if self.as_adapter else chosen_format(self.as_)

    @field_validator("as_")
    @classmethod
    def _format_is_known(cls, given: str) -> str:
        chosen_format(given)
        return given

    @model_validator(mode="after")
    def _the_alias_says_the_same(self) -> EditCommandConfig:
        if (
            self.as_adapter is not None
            and "as_" in self.model_fields_set
            and self.as_adapter != (chosen_format(self.as_).name == "adapter")
        ):
            alias = "--as-adapter" if self.as_adapter else "--no-as-adapter"
            raise InputError(f"{alias} contradicts --as {self.as_}: leave {alias} out")
        return self

    @model_validator(mode="after")
    def _one_file_says_what_is_removed(self) -> EditCommandConfig:
        if (self.direction is None) == (self.plan is None):
            raise InputError("give either --direction FILE or --plan FILE")
        return self


class VerifyConfig(FolderConfig):
    """Settings of verify: derive the proof of an edited checkpoint again."""

    base: str | None = setting(
        None,
        description="The base model (folder, Hub id or short name). With it, verify also checks that everything outside the edited "
        "tensors is unchanged.",
        panel=Panel.MAIN,
        rank=1,
        names="model",
    )
    revision: str | None = setting(None, description="Branch, tag or commit of the base on the Hub.", panel=Panel.MODEL, rank=1)


class PushConfig(FolderConfig):
    """Settings of push. huggingface_hub provides the token (HF_TOKEN, hf auth login)."""

    public: bool = setting(False, description="Make the repository public. Otherwise it is private.", panel=Panel.MAIN)
    dry_run: bool = setting(False, description="Check everything and show what would be uploaded; upload nothing.", panel=Panel.MAIN)
    even_so: str | None = setting(
        None,
        min_length=1,
        description="Your reason to publish although verify failed, or although no test has shown that refusals on the keep sets stay. "
        "The model card states it.",
        panel=Panel.MAIN,
    )
    license: str | None = setting(
        None,
        min_length=1,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$",
        description="Licence in the Hub's spelling (apache-2.0, mit), if the base's card names none.",
        panel=Panel.MAIN,
    )
    base: str | None = setting(
        None,
        description="The base model that verify compares the checkpoint with. Default: the run's base, if it is still where it was.",
        panel=Panel.MAIN,
        rank=1,
        names="model",
    )
    revision: str | None = setting(None, description="Branch, tag or commit of the base on the Hub.", panel=Panel.MODEL, rank=1)

    @field_validator("even_so")
    @classmethod
    def _the_reason_says_something(cls, given: str | None) -> str | None:
        if given is not None and not given.strip():
            raise PydanticCustomError("reason", "it must give a reason")
        return given


class JudgeConfig(ServerConfig):
    """Settings of score: what judges stored replies."""

    judge: str = setting(
        "rules",
        description="What judges the outcomes. rules: the built-in rules; classifier:ID[@LABELS]: a classifier (ID: a folder or Hub id; "
        "LABELS: LABEL=outcome,... or a JSON file); chat:URL[#MODEL]: a model on an OpenAI-compatible server.",
        panel=Panel.MAIN,
    )
    device: str = setting("auto", description="Device of a classifier: auto, cpu, cuda, cuda:1, mps.", panel=Panel.MODEL, rank=2)


class ReportConfig(JudgeConfig):
    """Settings of report: render a report again."""

    transcripts: Transcripts | None = setting(
        None, description="How much of each reply to show in report.html. Default: as in the run.", panel=Panel.REPORT
    )


class ChatConfig(HeldConfig, SourceConfig):
    """Settings of chat: a conversation with one model, or with two side by side."""

    beside: str | None = setting(
        None,
        min_length=1,
        description="A second model that gets the same messages, such as the edited checkpoint.",
        panel=Panel.MAIN,
        names="model",
    )
    beside_revision: str | None = setting(
        None, description="Branch, tag or commit of the second model on the Hub.", panel=Panel.MODEL, rank=1
    )
    temperature: float = setting(
        0.0, ge=0, le=10, description="Sampling temperature. 0: always take the likeliest token.", panel=Panel.REPLIES, rank=2
    )
    seed: int = setting(
        0, ge=0, le=2**63 - 1, description="Random seed for sampling, the same for both models.", panel=Panel.REPLIES, rank=3
    )
    max_new_tokens: int = setting(512, ge=1, description="Maximum length of a reply, in tokens.", panel=Panel.REPLIES, rank=1)

    @field_validator("beside")
    @classmethod
    def _beside_is_one(cls, given: str | None) -> str | None:
        if given is not None and is_url(given):
            raise InputError("--beside is a server's URL, but chat computes the models itself: give a folder, a Hub id or a short name")
        return given

    @model_validator(mode="after")
    def _thoughts_are_not_cut(self) -> ChatConfig:
        if self.thought_budget is not None:
            raise InputError(f"--thinking {self.thinking}: chat supports only on and off; limit the whole reply with --max-new-tokens")
        return self


class ReproduceConfig(Config):
    """Settings of reproduce: repeat a recorded run. They give new locations of its models, and what must not come from a record."""

    model: str | None = setting(
        None, min_length=1, description="Current location of the model of a run or an audit.", panel=Panel.MAIN, rank=1, names="model"
    )
    base: str | None = setting(
        None, min_length=1, description="Current location of the base of a comparison.", panel=Panel.MAIN, rank=1, names="model"
    )
    derived: str | None = setting(
        None, min_length=1, description="Current location of the derived model of a comparison.", panel=Panel.MAIN, rank=1, names="model"
    )
    reference: str | None = setting(
        None, min_length=1, description="Current location of the reference, if there was one.", panel=Panel.MAIN, names="model"
    )
    engine: str | None = setting(
        None,
        description=f"What generates the replies (transformers, vllm, a server's URL); {_NOT_FROM_A_RECORD}",
        panel=Panel.REPLIES,
        rank=4,
    )
    edited_engine: str | None = setting(
        None, description=f"URL of the server of the edited checkpoint; {_NOT_FROM_A_RECORD}", panel=Panel.REPLIES, rank=5
    )
    layout: str | None = setting(
        None,
        description=f"TOML file with the layout of an unknown architecture; {_NOT_FROM_A_RECORD}",
        panel=Panel.MODEL,
        rank=20,
        names="file",
    )
    study: str | None = setting(
        None, description=f"Where the search keeps its study; {_NOT_FROM_A_RECORD}", panel=Panel.CHOICE, rank=8, names="file"
    )
    lm_eval: Sets = setting(
        (), description=f"Tasks of lm-evaluation-harness; {_NOT_FROM_A_RECORD}", panel=Panel.REPLIES, rank=20, names="file"
    )
    trust_remote_code: bool = setting(
        False, description=f"Run Python code that comes with the models; {_NOT_FROM_A_RECORD}", panel=Panel.MODEL, rank=20
    )


class DirectionsConfig(Config):
    """Settings of directions: how good the directions of collected activations are, and one of them as a file."""

    estimators: Sets = setting(
        (),
        description=f"Estimators to show. Default: all that the file has enough data for ({', '.join(ESTIMATORS)}).",
        panel=Panel.CHOICE,
        rank=5,
    )
    estimator: str | None = setting(
        None,
        description="Estimator whose direction is written to --out. Give its name in the table ('projected', 'projected, scoped').",
        panel=Panel.MAIN,
    )
    layer: float | None = setting(
        None,
        ge=0,
        description="Block whose direction is written to --out (11.5: a mix of blocks 11 and 12). Default: one direction per block.",
        panel=Panel.MAIN,
    )
    position: int | None = setting(
        None,
        le=-1,
        description="Token at which the direction is taken (-1: the last token). Default: the token at which the direction separates best.",
        panel=Panel.MAIN,
    )

    @field_validator("estimators")
    @classmethod
    def _estimators_are_known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return known_estimators(given)
