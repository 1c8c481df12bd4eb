"""Write the JSON Schema of report.json and the tables of its keys in docs/report.md again, after the records of the report have changed."""

from __future__ import annotations

from pathlib import Path

from report_keys import DOCUMENT, with_keys

from abliterate.files import write_json
from abliterate.report import schema

if __name__ == "__main__":
    write_json(schema.generated(), Path(schema.__file__).with_name(schema.FILE))
    DOCUMENT.write_text(with_keys(DOCUMENT.read_text(encoding="utf-8"), schema.with_names()), encoding="utf-8")
