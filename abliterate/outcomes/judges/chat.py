"""A chat model on an OpenAI-compatible server as a judge."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from abliterate.errors import InputError
from abliterate.outcomes.judges.judge import Advance, Case, case_of, verdict_of
from abliterate.outcomes.judges.memory import Memory, key_of
from abliterate.outcomes.judges.rubric import VERSION, question, said
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.asking import find
from abliterate.replies.completion import PATH, reply_of, request
from abliterate.replies.served import Served, Wanted
from abliterate.replies.server import Line, RefusedError, Server
from abliterate.replies.transcripts import Transcript

_TOKENS = 1024  # maximum of a reply; a judge may think first


@dataclass(frozen=True)
class Chat:
    """``model``: the judge's name on the server; None if it is the only model there. ``memory``: the judge's earlier replies."""

    server: Server
    model: str | None
    memory: Memory

    @property
    def name(self) -> str:
        return f"chat:{self.server.url}" + (f"#{self.model}" if self.model else "")

    def __call__(self, transcripts: Sequence[Transcript], advance: Advance = lambda done: None) -> list[Verdict | None]:
        """One verdict per transcript. Only cases that are not in ``memory`` are asked. If the judge names no outcome in two tries, the
        verdict is None.

        Raises InputError if the server refuses or stays away; the replies so far are kept.
        """
        cases = [case_of(transcript) for transcript in transcripts]
        asked = list(dict.fromkeys(case for case in cases if case is not None))
        served = None if self.model else self._found()
        model = self.model or (served.model if served else "")
        keys = {case: key_of(model, VERSION, case) for case in asked}
        known = self.memory.known(list(keys.values()))
        left, times = [case for case in asked if keys[case] not in known], Counter(cases)
        advance(len(transcripts) - sum(times[case] for case in left))

        def keep(case: Case, reply: str) -> None:
            self.memory.keep(keys[case], model, VERSION, reply)
            known[keys[case]] = reply
            advance(times[case])

        if left:
            asyncio.run(self._ask(served or self._found(), left, keep))
        return [
            transcript.verdict() if case is None else self._verdict(transcript, known[keys[case]], model)
            for transcript, case in zip(transcripts, cases, strict=True)
        ]

    def _verdict(self, transcript: Transcript, reply: str, model: str) -> Verdict | None:
        found = said(reply)
        if found.outcome is None:
            return None
        verdict = verdict_of(transcript, found.outcome, f"chat: {model}")
        return verdict if verdict.worth is None else replace(verdict, worth=found.worth, grade=found.grade)

    def _found(self) -> Served:
        try:
            return find(self.server, Wanted(), self.model)
        except InputError as error:
            raise InputError(str(error).replace("--engine-model NAME", f"--judge 'chat:{self.server.url}#MODEL'")) from None

    async def _ask(self, served: Served, cases: Sequence[Case], keep: Callable[[Case, str], None]) -> None:
        """Ask about every case, up to ``concurrency`` at once; each reply is kept as soon as it arrives."""
        places = asyncio.Semaphore(self.server.concurrency)

        async def one(line: Line, case: Case) -> None:
            async with places:
                keep(case, await _said(line, served, case))

        try:
            async with self.server.connected() as line, asyncio.TaskGroup() as group:
                for case in cases:
                    group.create_task(one(line, case))
        except* InputError as several:
            first = several.exceptions[0]
        else:
            return
        raise InputError(f"{first} (verdicts so far are kept; run the same command again to resume)")


async def _said(line: Line, served: Served, case: Case) -> str:
    """The judge's reply to a case. If the first reply doesn't name all that was asked, the judge is asked once more."""
    reply = await _once(line, served, case, again=False)
    return reply if said(reply).is_enough(case) else await _once(line, served, case, again=True)


async def _once(line: Line, served: Served, case: Case, again: bool) -> str:
    body = request(served.model, question(case, again), 2 * _TOKENS if again else _TOKENS, served.extra)
    try:
        return (await line.call(PATH, body, reply_of)).text
    except RefusedError as refused:
        raise InputError(f"{refused} (while judging the reply to {case.prompt[:60]!r})") from None
