"""The calls of the model in a run, as an upper bound: which prompts, with how many interventions, how many reply tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from abliterate.choice.candidates import FIRST_SHARES, KINDS, at_most
from abliterate.choice.gate import GATED, REPLIES
from abliterate.choice.method import method_of
from abliterate.choice.openings import OPENING_TOKENS, PROBE_TOKENS, THOUGHT_TOKENS
from abliterate.choice.select import BATCH, RANKED_BY, SHARES, SHORTLIST
from abliterate.choice.tuned import STARTS
from abliterate.choice.tuning.descent import Settings, dealt
from abliterate.choice.tuning.examples import CONTINUED, OTHERS, STAYS
from abliterate.choice.tuning.first_order import ASKED, RIDGES
from abliterate.choice.tuning.on_policy import HEARD
from abliterate.choice.tuning.openings import ALIKE
from abliterate.choice.tuning.replies import distinct
from abliterate.compute.blockwise.model import MAX_NEW_TOKENS
from abliterate.compute.passes import Ids
from abliterate.config import RunConfig
from abliterate.directions.groups import by_language
from abliterate.measures.drift import REPLY, bundled_prose
from abliterate.measures.random_directions import SEEDS
from abliterate.measures.recovery import TOKENS
from abliterate.model.chat.template import encode, load_tokenizer, template_positions
from abliterate.model.folder import ModelFolder
from abliterate.prompts import Prompt, Role, RoleSets
from abliterate.prompts.languages.tokens import expected_tokens
from abliterate.prompts.promptset import evenly

Stage = Literal["collection", "selection", "edit", "evaluation"]
Encode = Callable[[Sequence[Prompt]], list[list[int]]]
SHORT = PROBE_TOKENS + THOUGHT_TOKENS  # maximum tokens of a short reply
POSITIONS = 4  # assumed if there is no chat template
_TEMPLATE = 16  # tokens that a chat template adds


@dataclass(frozen=True)
class Asked:
    """Sequences that go through the model ``times`` times, each with another intervention. ``kept``: last positions that get logits."""

    sequences: Ids
    times: int = 1
    kept: int = 0


@dataclass(frozen=True)
class Step:
    """One call of the model: all sequences that go through together, and the tokens of their replies. ``gradients``: with a backward pass.
    ``passed_over``: share of the blocks below everything edited, which a model held whole skips."""

    stage: Stage
    name: str
    asked: tuple[Asked, ...]
    new_tokens: int = 0
    gradients: bool = False
    passed_over: float = 0.0

    @property
    def sweeps(self) -> int:
        """How often, at most, a model that is read block by block reads its weights: once per reply token."""
        return min(self.new_tokens, MAX_NEW_TOKENS) or 1

    @property
    def prompts(self) -> int:
        """Number of sequences, counted once per intervention."""
        return sum(len(asked.sequences) * asked.times for asked in self.asked)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run as token ids, by role and split; test prompts by set. ``languages``: how many have their own directions.

    ``exact``: encoded by the model's own tokenizer. ``positions``: number of last tokens whose activations are collected. ``sampled``: the
    test prompts with facts.
    """

    train: dict[Role, Ids]
    val: dict[Role, Ids]
    test: dict[str, Ids]
    harmless: Ids
    prose: Ids
    languages: int
    positions: int
    exact: bool
    sampled: Ids = ()

    def __len__(self) -> int:
        return sum(len(ids) for part in (self.train, self.val, self.test) for ids in part.values())

    @property
    def tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(ids) for part in (self.train, self.val, self.test) for prompts in part.values() for ids in prompts)

    def half(self) -> Prompts:
        """The same with every second prompt."""
        return replace(
            self,
            train={role: ids[::2] for role, ids in self.train.items()},
            val={role: ids[::2] for role, ids in self.val.items()},
            test={name: ids[::2] for name, ids in self.test.items()},
            harmless=self.harmless[::2],
            prose=self.prose,
            sampled=self.sampled[::2],
        )


def read_prompts(config: RunConfig, folder: ModelFolder) -> Prompts:
    """The prompts that a run with these settings would ask. Raises InputError as the run would, except for a missing tokenizer."""
    sets = RoleSets(config.target, config.baseline, config.keep, config.harmless, config.limit)
    exact = any(next(folder.path.glob(pattern), None) for pattern in ("tokenizer*", "vocab*"))
    tokenizer = load_tokenizer(folder.path, folder.trust_remote_code, config.thinking != "off") if exact else None

    def encoded(prompts: Sequence[Prompt]) -> Ids:
        return _guessed(prompts) if tokenizer is None else encode(tokenizer, [p.text for p in prompts])

    train = {role: sets.prompts(role, "train") for role in sets.played}
    shared = by_language({role: train[role] for role in ("target", "baseline")})
    return Prompts(
        train={role: encoded(prompts) for role, prompts in train.items()},
        val={role: encoded(sets.prompts(role, "val")) for role in sets.played},
        test={group.name: encoded(group.prompts) for group in sets.test_sets()},
        harmless=encoded(sets.prompts("harmless", "test")),
        prose=encoded([Prompt(str(i), text) for i, text in enumerate(bundled_prose())]),
        languages=len(shared.get("target", {})),
        positions=config.positions or (POSITIONS if tokenizer is None else len(template_positions(tokenizer))) + bool(sets.sets("keep")),
        exact=tokenizer is not None,
        sampled=encoded([prompt for group in sets.test_sets() for prompt in group if prompt.facts]),
    )


def _guessed(prompts: Sequence[Prompt]) -> Ids:
    """About as many ids as a prompt has tokens in a large vocabulary; no two prompts begin with the same id."""
    lengths = [_TEMPLATE + round(expected_tokens(prompt.text, prompt.lang)) for prompt in prompts]
    return [[number, *range(1, length)] for number, length in enumerate(lengths)]


def run_steps(config: RunConfig, prompts: Prompts, layers: int, whole: bool = False) -> list[Step]:
    """Every call of a run, in order, for a model held ``whole`` or not. Replies that end early need less."""
    train, val = prompts.train, prompts.val
    gradient = method_of(config, whole) == "gradient"
    by_effect = gradient and config.tune_directions != "off"
    languages = 0 if by_effect else prompts.languages
    tried = at_most(config.candidates, layers, languages, len(config.estimators), ("per-layer",) if gradient else KINDS)
    tried += len(RIDGES) if by_effect else 0
    opened = {role: [[*ids, *[0] * OPENING_TOKENS] for ids in evenly(val[role], RANKED_BY)] for role in ("target", "baseline")}
    opened |= {"baseline": []} if gradient else {}
    kept = OPENING_TOKENS + 1
    below = int(min(FIRST_SHARES) * layers) / layers if gradient else 0.0
    shortlisted = min(STARTS if gradient else SHORTLIST, tried) * (1 if gradient or config.tune == "search" else len(SHARES))
    steps = [*_probed(prompts, whole), *_own_predictions(val, whole), Step("selection", "own openings", (_openings(val, 1),))]
    steps += [_effects(train)] if by_effect else []
    steps += [
        Step(
            "selection",
            "candidates by cause",
            (
                Asked(opened["target"], tried + 1, kept),
                Asked(opened["baseline"], 2 * tried + 1, kept),
                Asked(evenly(val["harmless"], RANKED_BY), tried + 1, 1),
            ),
            passed_over=below,
        ),
        Step("selection", "candidates more weakly", _measured(val, shortlisted), passed_over=below),
    ]
    if config.tune == "search":
        steps += [Step("selection", "search", _measured(val, min(BATCH, config.trials))) for _ in range(-(-config.trials // BATCH))]
    elif gradient:
        steps += _starts(val, shortlisted) if by_effect else []
        steps += _tuning_steps(config, train, val, below, shortlisted)
    steps.append(Step("selection", "gate: short replies (val)", _gate(val), SHORT))
    tested = tuple(Asked(ids) for ids in prompts.test.values())
    if config.engine == "transformers":
        for which in ("base", "edited"):
            steps.append(Step("evaluation", f"replies of the {which} model", tested, config.max_new_tokens))
            if config.samples and prompts.sampled:
                sampled = (Asked(prompts.sampled, config.samples),)
                steps.append(Step("evaluation", f"sampled replies of the {which} model", sampled, config.max_new_tokens))
    reply = min(REPLY, config.max_new_tokens)
    along = [[*ids, *[0] * reply] for ids in prompts.harmless]
    drifted = (Asked(prompts.harmless, 1, 1), Asked(along, 1, reply + 1), Asked(prompts.prose, 1, max(map(len, prompts.prose), default=1)))
    steps += [Step("evaluation", f"drift: the {which} model's predictions", drifted) for which in ("base", "edited")]
    interventions = 2 + len(SEEDS)  # no edit, the edit, and one edit per random direction
    controlled = (*tested[: len(config.target)], Asked(prompts.harmless))
    steps.append(Step("evaluation", "random directions", tuple(Asked(asked.sequences, interventions, 1) for asked in controlled)))
    return [*steps, *_recovery_steps(tested)] if config.reference is not None else steps


def _probed(prompts: Prompts, whole: bool) -> Iterator[Step]:
    """Activations, and the short replies that the choice needs; both come from one pass if the model is held whole."""
    train, val = prompts.train, prompts.val
    judging = {role: ids for role, ids in val.items() if role != "harmless" or "keep" in val}
    asked = (*map(Asked, train.values()), *map(Asked, judging.values()))
    if not whole:
        yield Step("collection", "activations", asked)
        yield Step("selection", "own short replies (val)", tuple(map(Asked, distinct(val).values())), SHORT)
        return
    yield Step("collection", "activations and own short replies", asked, SHORT)
    if rest := [ids for role, ids in val.items() if role not in judging and ids != val.get("baseline")]:
        yield Step("selection", "own short replies (val)", tuple(map(Asked, rest)), SHORT)


def _own_predictions(val: Mapping[Role, Ids], whole: bool) -> Iterator[Step]:
    """The predictions along the short replies that should stay, unless they were recorded while the replies were generated."""
    if not whole:
        yield Step("selection", "own predictions (val)", _staying(val, 1))
    elif "keep" not in val:
        yield Step("selection", "own predictions (val)", _staying({"harmless": val["harmless"]}, 1))


def _gate(val: Mapping[Role, Ids]) -> tuple[Asked, ...]:
    """The prompts that the best edits reply to."""
    return tuple(Asked(evenly(ids, REPLIES), GATED) for ids in distinct(val).values())


def _measured(val: Mapping[Role, Ids], times: int) -> tuple[Asked, ...]:
    """The sequences that measure ``times`` edits."""
    return (_openings(val, times), *_staying(val, times))


def _openings(asked: Mapping[Role, Ids], times: int, later: int = 0) -> Asked:
    """Continuations with which the model could withhold an answer to target prompts. ``later``: after how many phases of tuning edited
    models have added theirs."""
    lines = 1 + OTHERS + (later + OTHERS if later else 0)
    return Asked([[*ids, *[0] * ALIKE] for ids in asked["target"] for _ in range(lines)], times, ALIKE + 1)


def _staying(asked: Mapping[Role, Ids], times: int) -> tuple[Asked, ...]:
    roles = [role for role in STAYS if role in distinct(asked)]
    return tuple(Asked([[*ids, *[0] * CONTINUED] for ids in asked[role]], times, CONTINUED + 1) for role in roles)


def _effects(train: Mapping[Role, Ids]) -> Step:
    """The step that measures first-order effects: target prompts with their own openings and with others', keep prompts with their own,
    and some examples of each role that should stay."""
    refused = [*evenly(train["target"], ASKED) * 2, *evenly(train.get("keep", []), ASKED)]
    asked = [Asked([[*ids, *[0] * OPENING_TOKENS] for ids in refused], 1, OPENING_TOKENS + 1)]
    asked += _staying({role: evenly(ids, ASKED) for role, ids in distinct(train).items()}, 1)
    return Step("selection", "first-order effects", tuple(asked), gradients=True)


def _starts(val: Mapping[Role, Ids], measured: int) -> list[Step]:
    """The steps that choose the start of the tuner: the first of either kind replies, then all are ``measured`` with their openings too."""
    made = []
    for number in (1, 2):
        made.append(Step("selection", "short replies of a start", (Asked(evenly(val["target"], HEARD)),), SHORT))
        made.append(Step("selection", "own openings", (_openings(val, 1, number),)))
    return [*made, Step("selection", "starts with the openings of their replies", (_openings(val, measured, 2),))]


def _tuning_steps(config: RunConfig, train: Mapping[Role, Ids], val: Mapping[Role, Ids], below: float, before: int) -> Iterator[Step]:
    """The steps of the tuner, which needs the model held whole: some examples of each role per step, looks at val, and after each phase the
    edited model's replies. In the end, these edits and those measured ``before`` are measured once more with all openings."""
    settings = Settings(steps=config.tune_steps)
    counts = {role: len(ids) for role, ids in distinct(train).items()}
    rounds = {role: -(-settings.total * each // max(counts[role], 1)) for role, each in dealt(counts, settings.batch).items()}
    asked = tuple(Asked([[*ids, *[0] * CONTINUED] for ids in train[role]], rounds[role], CONTINUED + 1) for role in counts)
    yield Step("selection", "tuning", asked, gradients=True)
    phases = len(settings.weights)
    each = len(settings.looked)
    for phase in range(phases):
        yield Step("selection", "looks at val", (_openings(val, each, phase), *_staying(val, each)), passed_over=below)
        replying = tuple(Asked(evenly(ids["target"], HEARD)) for ids in (train, val))
        yield Step("selection", "short replies of edited models", replying, SHORT)
        yield Step("selection", "own openings", (_openings(val, 1, phase + 1),))
    yield Step("selection", "looks at val with all openings", (_openings(val, settings.looks + before, phases),), passed_over=below)


def _recovery_steps(tested: Sequence[Asked]) -> Iterator[Step]:
    """The replies of the reference (assumed to be as large as the model), and the predictions of all models along them."""
    yield Step("evaluation", "replies of the reference", tuple(tested), TOKENS)
    along = tuple(Asked([[*ids, *[0] * TOKENS] for ids in asked.sequences], 1, TOKENS + 1) for asked in tested)
    for which in ("reference's", "base model's", "edited model's"):
        yield Step("evaluation", f"recovery: the {which} predictions", along)


def sweeps_of(steps: Sequence[Step]) -> int:
    """How often, at most, a run reads all weights of a model that doesn't fit into memory."""
    return sum(step.sweeps for step in steps)
