"""Which replies are asked for: a greedy one to every prompt and, with ``--samples``, sampled ones to the prompts whose facts are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from abliterate.compute.draws import Draw
from abliterate.config import AuditConfig, RunConfig
from abliterate.errors import InputError
from abliterate.prompts import Prompt, PromptSet

Key = tuple[str, str, int]  # of a reply: its set, its prompt's id, and its sample


@dataclass(frozen=True)
class Asked:
    """A reply to a prompt of a set. ``sample``: 0 for the greedy one, 1 and up for sampled ones."""

    set: str
    prompt: Prompt
    sample: int = 0

    @property
    def key(self) -> Key:
        return self.set, self.prompt.id, self.sample


@dataclass(frozen=True)
class Sampling:
    """So many sampled replies (``count``) besides the greedy one to each prompt with facts, with random numbers from ``seed``."""

    count: int = 0
    seed: int = 0

    def asked(self, sets: Iterable[PromptSet]) -> list[Asked]:
        """All replies to the prompts: first the greedy ones in the prompts' order, as without samples, then the sampled ones."""
        greedy = [Asked(group.name, prompt) for group in sets for prompt in group]
        several = range(1, self.count + 1)
        return greedy + [Asked(one.set, one.prompt, sample) for one in greedy if one.prompt.facts for sample in several]

    def draw(self, asked: Asked) -> Draw:
        """The random numbers of a sampled reply: its own, so that no other reply changes it. The same for both models of a run."""
        return Draw("\0".join((str(self.seed), str(asked.sample), asked.set, asked.prompt.id)))

    def seed_of(self, asked: Asked) -> int:
        """A seed of 31 bits for an engine that draws by itself."""
        return int(self.draw(asked).number(0) * 2**31)


GREEDY = Sampling()


def sampling_of(config: RunConfig | AuditConfig) -> Sampling:
    """The sampling that the settings ask for."""
    return Sampling(config.samples, config.seed)


def check_facts(config: RunConfig | AuditConfig, sets: Sequence[PromptSet]) -> None:
    """Raises InputError if samples are asked for and no prompt has facts."""
    if config.samples and not any(prompt.facts for group in sets for prompt in group):
        raise InputError(
            f"--samples {config.samples}: no prompt lists facts, and only prompts with facts are sampled; "
            "add some to the prompts, ask a set that has them (censorship-control), or leave --samples out"
        )
