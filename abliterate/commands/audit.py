"""Ask one model every prompt and report what it withholds; nothing is edited."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path

from abliterate.config import AuditConfig, is_url
from abliterate.measures.consistency.consistency import Replies, checked
from abliterate.measures.elicitation.stage import inquiry_of
from abliterate.measures.elicitation.stored import stored_scores
from abliterate.measures.final_test import benchmarked
from abliterate.measures.summary import judge_all
from abliterate.prompts.asked import asked_sets
from abliterate.replies.engine import engine_of, reply_length, wanted_of
from abliterate.replies.responding import respond
from abliterate.replies.samples import check_facts, sampling_of
from abliterate.replies.served import Wanted
from abliterate.report.document import report_document
from abliterate.report.tree.report import Report
from abliterate.report.write import write_report
from abliterate.runs.document import UNRESOLVED
from abliterate.runs.folder import open_run, recorded_clock
from abliterate.runs.record import open_model, resolved, run_record


def audit(config: AuditConfig, out: Path, clock: datetime | None = None) -> Report:
    """Ask one model every prompt and report the outcomes in the run folder ``out``. Returns the report. ``clock``: as for ``run``."""
    on_server = is_url(config.model)
    source, session = (None, None) if on_server else open_model(config, out, recorded_clock(out) or clock)
    wanted = Wanted() if source is None else wanted_of(source)
    groups, sampling = asked_sets(config), sampling_of(config)
    check_facts(config, groups)
    described = {group.name: group.used_as("audited") for group in groups}
    record = run_record("audit", config, source, described, resolved(session, config, None) if session else UNRESOLVED)
    if session is not None:
        session.check_prompts({group.name: group for group in groups}, reply_length(config, session))
    inquiry = inquiry_of(config, groups, session)
    folder = open_run(out, record)
    ask = partial(engine_of, config, session, wanted, config.model if on_server else None)
    replies = respond(folder, ask, groups, "base", sampling)
    if inquiry is not None and session is not None:
        inquiry.scores(folder, session, "base")
    if session is not None:
        benchmarked(folder, config, {"base": session})
    roles = {group.name: "audited" for group in groups}
    found = checked(sampling, roles, Replies.of(judge_all(replies), replies))
    elicited = None if inquiry is None else stored_scores(out)
    report = report_document(
        folder.record(), roles, found.base, None, None, None, None, margin=0.05, elicited=elicited, consistency=found.consistency
    )
    return write_report(folder, report, found.base, None, None)
