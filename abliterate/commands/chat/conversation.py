"""The conversation: the user's lines and each model's replies, until the input ends."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Event

from abliterate.commands.chat.screen import Screen, screen
from abliterate.commands.chat.speaker import ChatReply, Sampling, Speaker
from abliterate.compute.memory import PROGRAM
from abliterate.compute.session import Session
from abliterate.compute.whole.model import WholeModel
from abliterate.config import ChatConfig, ModelConfig
from abliterate.errors import InputError
from abliterate.model.chat.content import remembers
from abliterate.model.source import CHECKPOINT, resolve_model

HELP = "/reset forgets the conversation, /quit ends it; Ctrl-C stops a reply"
_SAID = tuple[str, str]  # a label and its reply so far


def chat(config: ChatConfig) -> None:
    """Talk with the model, and with the one beside it, until the input ends.

    Raises InputError if a model can't be used, or if both don't fit into memory together.
    """
    shown = screen()
    speakers = opened(config)
    shown.note(f"{' | '.join(speaker.label for speaker in speakers)}. {HELP}")
    for speaker in speakers:
        if not remembers(speaker.model.tokenizer):
            shown.note(f"{speaker.label}: its chat template leaves out, or refuses, what was said before; type /reset before each question")
    converse(speakers, shown)


def opened(config: ChatConfig) -> list[Speaker]:
    """Load the models, whole in memory. If they don't fit, raises InputError before any is loaded."""
    given = [config.model] if config.beside is None else [config.model, config.beside]
    revisions = (config.revision, config.beside_revision)
    shared = config.model_dump(exclude={"model", "revision", "beside", "beside_revision", "temperature", "seed", "max_new_tokens"})
    sessions: list[Session] = []
    for name, revision in zip(given, revisions, strict=False):
        source = resolve_model(name, revision)
        clock = sessions[0].clock if sessions else None
        sessions.append(Session(ModelConfig(model=name, revision=revision, **shared), source.path, clock=clock))
    for session in sessions:
        session.tokenizer()
    check_room(sessions)
    manner = Sampling(config.temperature, config.seed, config.max_new_tokens)
    speakers = []
    for label, session in zip(labels(given), sessions, strict=True):
        model = session.model
        assert isinstance(model, WholeModel)  # ensured by check_room
        speakers.append(Speaker(label, model, manner))
    return speakers


def check_room(sessions: Sequence[Session]) -> None:
    """Raises InputError if the models don't fit into memory together, or if one does not even fit alone."""
    fits = [session.holding for session in sessions]
    on_cpu = sessions[0].device.type == "cpu"
    needed = sum(fit.peak for fit in fits) - (PROGRAM * (len(fits) - 1) if on_cpu else 0)  # the program itself counts once
    room = min(fit.budget for fit in fits)
    if any(not fit.whole for fit in fits):
        raise InputError(
            f"chat needs the whole model in memory, but it is larger than the limit of {_gib(room)}; --dtype bfloat16 may help"
        )
    if needed > room:
        raise InputError(
            f"both models together need {_gib(needed)}, but the limit is {_gib(room)}; give --dtype bfloat16, or talk with one at a time"
        )
    if len(fits) > 1 and any(fit.gpus for fit in fits):  # each was measured as if it had the GPUs for itself
        raise InputError("a model that needs several GPUs can't have another beside it; talk with one at a time")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def labels(given: Sequence[str]) -> list[str]:
    """A label for each model: the last part of its name (for a run's checkpoint, the name of the run). If two are equal: the whole names,
    numbered if they are equal too."""
    short = [_last(name) for name in given]
    chosen = short if len(set(short)) == len(short) else list(given)
    return chosen if len(set(chosen)) == len(chosen) else [f"{name} ({i})" for i, name in enumerate(chosen, 1)]


def _last(name: str) -> str:
    path = Path(name)
    return (path.absolute().parent.name if path.name == CHECKPOINT else path.name) or name


def converse(speakers: Sequence[Speaker], shown: Screen) -> None:
    """Answer line after line; a line that begins with a slash is a command, not a message."""
    for line in shown.lines():
        said = line.strip()
        if said == "/quit":
            return
        if said == "/reset":
            for speaker in speakers:
                speaker.reset()
            shown.note("the conversation is forgotten")
        elif said.startswith("/"):
            shown.note(HELP)
        elif said:
            try:
                shown.told(replies(speakers, said, shown))
            except InputError as error:
                shown.note(str(error))


def replies(speakers: Sequence[Speaker], text: str, shown: Screen) -> dict[str, ChatReply]:
    """Each model's reply to a text, all at once. Ctrl-C stops the replies; the parts so far stay.

    Raises InputError if one model can't reply; then no model remembers the text, so that all continue from the same turn.
    """
    stop, heard = Event(), SimpleQueue[_SAID | None]()

    def speak(speaker: Speaker) -> ChatReply:
        try:
            return speaker.reply(text, lambda so_far: heard.put((speaker.label, so_far)), stop)
        finally:
            heard.put(None)

    with ThreadPoolExecutor(len(speakers)) as pool, shown.replying([speaker.label for speaker in speakers]) as hear:
        futures: dict[str, Future[ChatReply]] = {}
        try:
            futures = {speaker.label: pool.submit(speak, speaker) for speaker in speakers}
            ended = 0
            while ended < len(speakers):
                part = heard.get()
                if part is None:
                    ended += 1
                else:
                    hear(*part)
        except KeyboardInterrupt:
            stop.set()
    said = {label: future.result() for label, future in futures.items()}
    for speaker in speakers:
        if speaker.label in said:
            speaker.remember(text, said[speaker.label])
    return said
