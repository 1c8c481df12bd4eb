"""Ask a server many prompts, several at once; each reply is on disk as soon as it arrives."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from abliterate.errors import InputError
from abliterate.prompts import PromptSet
from abliterate.replies.completion import PATH, reply_of, request, sampled_request
from abliterate.replies.samples import GREEDY, Asked, Sampling
from abliterate.replies.served import Served, Wanted, choose
from abliterate.replies.server import Line, RefusedError, Server
from abliterate.replies.transcripts import Transcript, append, in_order, missing, resume, transcript_of


def find(server: Server, wanted: Wanted, named: str | None) -> Served:
    """The wanted model on a server. Raises InputError if the server can't be reached or the model can't be identified."""

    async def found() -> Served:
        async with server.connected() as line:
            return await choose(line, server.url, wanted, named)

    return asyncio.run(found())


@dataclass(frozen=True)
class Asking:
    """Replies of a served model, greedy and sampled ones. ``opens_thought``: its chat template begins each reply inside the thinking
    block."""

    server: Server
    served: Served
    max_new_tokens: int
    opens_thought: bool = False
    sampling: Sampling = GREEDY

    def answer(self, sets: Sequence[PromptSet], path: Path, advance: Callable[[int], None] = lambda done: None) -> list[Transcript]:
        """Replies to every prompt of every set, in their order. Each reply is appended to ``path`` when it arrives.

        Resumes a file begun earlier. Raises InputError if the server refuses a prompt or stays away; finished replies are kept.
        """
        wanted = self.sampling.asked(sets)
        kept = resume(path, wanted)
        advance(len(kept))

        def keep(made: Sequence[Transcript]) -> None:
            if made:
                append(path, made)
                kept.extend(made)
                advance(len(made))

        if left := missing(kept, wanted):
            asyncio.run(self._all(left, keep))
        return in_order(kept, wanted)

    async def _all(self, asked: Sequence[Asked], keep: Callable[[Sequence[Transcript]], None]) -> None:
        """Ask all prompts. Replies that arrive during a file write are written together by the next one."""
        waiting, running = deque(asked), set[asyncio.Task[Transcript]]()
        async with self.server.connected() as line:
            try:
                while waiting or running:
                    while waiting and len(running) < self.server.concurrency:
                        running.add(asyncio.create_task(self._one(line, waiting.popleft())))
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    keep([task.result() for task in done if task.exception() is None])
                    for task in done:
                        task.result()
            finally:
                for task in running:
                    task.cancel()
                ended = await asyncio.gather(*running, return_exceptions=True)
                keep([reply for reply in ended if isinstance(reply, Transcript)])

    async def _one(self, line: Line, asked: Asked) -> Transcript:
        prompt, given = asked.prompt, (self.served.model, asked.prompt.text, self.max_new_tokens, self.served.extra)
        body = sampled_request(*given, self.sampling.seed_of(asked)) if asked.sample else request(*given)
        try:
            reply = await line.call(PATH, body, reply_of)
        except RefusedError as refused:
            raise InputError(
                f"{refused} (prompt {prompt.id!r} of {asked.set!r}; finished replies are kept; run the same command again to resume)"
            ) from None
        return transcript_of(asked, reply.text, reply.new_tokens, self.opens_thought and not reply.marked, reply.cut)
