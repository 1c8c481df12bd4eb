"""Gradient descent on mini-batches of examples, with measurements on val."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.choice.front import Point
from abliterate.choice.tuning.after_thought import Line
from abliterate.choice.tuning.examples import Examples, Stay
from abliterate.choice.tuning.losses import drift, fallen, likely, withheld
from abliterate.choice.tuning.measure import moved
from abliterate.choice.tuning.optimiser import Optimiser
from abliterate.choice.tuning.parameters import Parameters
from abliterate.choice.tuning.state import STATE, Seen, Step, packed, restored
from abliterate.compute.passes import Advance, Intervention, no_progress
from abliterate.compute.whole.gradients import MicroBatch, logits, micro_batch
from abliterate.compute.whole.model import WholeModel
from abliterate.model.edit import Edit
from abliterate.prompts import Role
from abliterate.runs.resume import NO_STORE, ResumeStore

_SELDOM = 6  # the most steps between two val measurements


@dataclass(frozen=True)
class Settings:
    """Settings of the tuner.

    ``steps``: steps per phase. ``weights``: the weight of one nat of drift against one nat of suppression, one phase per weight, in order.
    ``batch``: examples of each role per step; twice as many if only one role should stay. ``strength_rate``: Adam's learning rate for
    strengths. ``turn``: the angle in radians by which a step turns a direction if its gradients agree. Phase n divides both rates by n. A
    strength that reaches zero stays zero. ``few``: the cost of a strength of one, ``near``: the cost of directions at a right angle to
    their start, both in nats. ``every``: steps between two measurements on val; None: at most six, and few enough that patience can run out
    within a phase. ``patience``: a phase ends after this many measurements in a row without improvement.
    """

    steps: int = 6
    weights: tuple[float, ...] = (5.0, 12.0, 20.0)
    batch: int = 6
    strength_rate: float = 0.05
    turn: float = 0.1
    few: float = 0.002
    near: float = 1.0
    every: int | None = None
    patience: int = 1
    seed: int = 0

    @property
    def total(self) -> int:
        """The steps of all phases together."""
        return self.steps * len(self.weights)

    @property
    def looked(self) -> list[int]:
        """The steps of a phase after which the edit is measured on val; the last step is always one of them."""
        return [n for n in range(1, self.steps + 1) if n % self._between == 0 or n == self.steps]

    @property
    def _between(self) -> int:
        """Steps between two val measurements. If a phase has enough steps, patience can run out before the last one."""
        if self.every is not None:
            return self.every
        return min(_SELDOM, (self.steps - 1) // (self.patience + 1)) or _SELDOM

    @property
    def looks(self) -> int:
        """The most val measurements of all phases together."""
        return len(self.looked) * len(self.weights)


def descend(
    model: WholeModel,
    parameters: Parameters,
    train: Examples,
    look: Callable[[Edit], Point],
    cost: Callable[[Point], float],
    settings: Settings,
    advance: Advance = no_progress,
    store: ResumeStore = NO_STORE,
    after: Callable[[Edit], Examples] | None = None,
) -> tuple[list[Seen], list[Step]]:
    """Run all phases from the given parameters. Returns the edits measured on val, and every step.

    ``look`` measures an edit on val, and ``cost`` turns the result into one number. ``after`` is called with the edit at the end of each
    phase and returns the train examples from then on. ``advance`` counts every step, measurement and call of ``after``. Resumes from the
    last measurement in the ``store``, assuming that the model, the examples and the cost are the same; ``after`` is then called again for
    each phase that has ended. Ends early if nothing is left to learn (``Parameters.ended``).
    """
    assert settings.steps > 0
    deck = _Deck(train, settings.batch, settings.seed)
    optimiser = Optimiser.of(parameters, settings.strength_rate, settings.turn)
    store = store.of([asdict(settings), parameters.most], parameters.tensors())
    state = restored(store.state(STATE), parameters, optimiser)
    advance(len(state.steps) + len(state.seen))
    for number in range(1, len(state.steps) + 1):
        deck.deal(number)

    def end_phase(edit: Edit) -> None:
        if after is not None:
            deck.examples = after(edit)
            advance(1)

    for index in state.last:
        end_phase(state.seen[index].edit)
    micro = micro_batch(model, deck.longest())
    while state.phase < len(settings.weights) and parameters.ended() is None:
        weight, number = settings.weights[state.phase], len(state.steps) + 1
        optimiser.slow_down(1 + state.phase)
        optimiser.forget_gradients()
        target, stays = _gradients(model, parameters, deck.examples, deck.deal(number), weight, settings, micro)
        parameters.settle_gradient()
        optimiser.step()
        parameters.settle()
        state.steps.append(Step(number, weight, target, stays, float(parameters.strength.detach().sum())))
        state.step += 1
        advance(1)
        if state.step in settings.looked:
            baked = parameters.baked()
            state.seen.append(Seen(f"tuned, step {number}", number, weight, baked, look(baked)))
            advance(1)
            ended = state.judge(cost(state.seen[-1].point), settings.steps, settings.patience)
            store.save_state(STATE, *packed(state, parameters, optimiser))
            if ended:
                end_phase(baked)
                micro = micro_batch(model, deck.longest())
    return state.seen, state.steps


@dataclass(frozen=True)
class _Card:
    """One training example: the prompt at index ``place`` of its role, and the reply to it. The first ``mark`` tokens of the reply close a
    thought at once. ``prompt``: everything before the reply, including a thought."""

    role: Role
    place: int
    prompt: Sequence[int]
    reply: Sequence[int]
    mark: int = 0

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.reply)


class _Deck:
    """Training examples of each role, shuffled and used equally often. ``examples`` may be replaced by others of the same prompts."""

    def __init__(self, examples: Examples, batch: int, seed: int) -> None:
        chance = random.Random(seed)
        self.examples, self._batch = examples, dealt(examples.counts, batch)
        self._piles = {role: _rounds(size, chance) for role, size in examples.counts.items()}

    def longest(self) -> int:
        """The length in tokens of the longest example."""
        stays = (self._card(role, place, 0).length for role in self.examples.stays for place in range(self.examples.counts[role]))
        prompts = enumerate(self.examples.target.prompts)
        target = (len(prompt) + len(line.thought) + len(line.tokens) for i, prompt in prompts for kind in self._kinds(i) for line in kind)
        return max(0, *stays, *target)

    def deal(self, step: int) -> list[_Card]:
        return [self._card(role, next(pile), step) for role, pile in self._piles.items() for _ in range(self._batch[role])]

    def _card(self, role: Role, place: int, step: int) -> _Card:
        if role != "target":
            asked = self.examples.stays[role].asked
            return _Card(role, place, asked.prompts[place], asked.continuations[place])
        kinds = self._kinds(place)
        turn, which = divmod(step + place, len(kinds))
        line = kinds[which][turn % len(kinds[which])]
        mark = self.examples.marks[place] if which == 0 else 0
        return _Card(role, place, [*self.examples.target.prompts[place], *line.thought], line.tokens, mark)

    def _kinds(self, place: int) -> list[Sequence[Line]]:
        """The kinds of lines that may withhold a prompt, used in turn, so that a suppressed kind is not replaced by another. Every second
        one is of edited models, if there are any: these lines are the ones that the model still says."""
        *known, later = self.examples.kinds(place)
        used = [kind for kind in known if kind]
        return [each for kind in used for each in (kind, later)] if later else used


def dealt(counts: Mapping[Role, int], batch: int) -> dict[Role, int]:
    """How many examples of each role a step uses, given the ``counts`` there are. If only one role should stay, it gets twice as many."""
    each = max(batch, 2 * batch // max(1, len(counts) - 1))
    return {role: min(batch if role == "target" else each, size) for role, size in counts.items()}


def _rounds(size: int, chance: random.Random) -> Iterator[int]:
    while True:
        yield from chance.sample(range(size), size)


def _gradients(
    model: WholeModel,
    parameters: Parameters,
    examples: Examples,
    cards: Sequence[_Card],
    weight: float,
    settings: Settings,
    micro: MicroBatch,
) -> tuple[float, dict[Role, float]]:
    """Accumulate the gradients of one step, micro-batch by micro-batch. Returns the mean suppression, and the mean drift by role."""
    sequences = [[*card.prompt, *card.reply] for card in cards]
    kept = 1 + max(len(card.reply) for card in cards)
    counts = {role: sum(card.role == role for card in cards) for role in ("target", *examples.stays)}
    share: dict[Role, float] = {role: weight / len(examples.stays) / counts[role] for role in examples.stays}
    share["target"] = 1 / counts["target"]
    sums: dict[Role, float] = dict.fromkeys(counts, 0.0)
    whole = parameters.edit()
    leaves = [t.detach().requires_grad_() for t in (whole.direction, whole.strength)]
    trial = Edit(leaves[0], leaves[1], "skip")  # each micro-batch's graph ends at these leaves and is freed before the next
    for indices, rows in logits(model, Intervention(trial), sequences, kept, micro):
        losses = [(cards[index].role, _loss(examples, cards[index], row)) for index, row in zip(indices, rows, strict=True)]
        for role, loss in losses:
            sums[role] += float(loss.detach()) / counts[role]
        terms = [share[role] * loss for role, loss in losses]
        for index, row in zip(indices, rows, strict=True):
            if cards[index].role == "keep":
                terms.append(_fallen(examples.stays["keep"], cards[index], row) / counts["keep"])
        torch.autograd.backward([torch.stack(terms).sum()])
    penalty = settings.few * parameters.edits()
    if parameters.vectors.requires_grad:
        penalty = penalty + settings.near * parameters.turned()
        torch.autograd.backward([whole.direction], [leaves[0].grad])
    torch.autograd.backward([whole.strength, penalty], [leaves[1].grad, None])
    return sums.pop("target"), sums


def _loss(examples: Examples, card: _Card, row: Float[Tensor, "kept vocab"]) -> Float[Tensor, ""]:
    """The loss of one example: how likely the reply is (target), or how far the model has drifted along it (other roles). ``row`` ends with
    the logits of the reply's last token."""
    if card.role != "target":
        stay = examples.stays[card.role]
        return drift(moved(stay, [card.place], row[None])[0][1], stay.first(card.place))
    return withheld(likely(row, card.reply), card.mark)


def _fallen(keep: Stay, card: _Card, row: Float[Tensor, "kept vocab"]) -> Float[Tensor, ""]:
    """How much less likely the refusal of a keep prompt became, in nats, from its first informative token on. A nat of it counts as much as
    a nat of suppression of the target: replies on the brink of a refusal lose it at little drift."""
    first = keep.first(card.place)
    base = keep.predicted.logprobs[keep.predicted.place(card.place)].amax(-1)  # its own replies are greedy
    return fallen(base[first:].to(row.device), likely(row, card.reply)[first:])
