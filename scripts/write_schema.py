"""Write the JSON Schema of report.json again, after the records of the report have changed."""

from __future__ import annotations

from pathlib import Path

from abliterate.files import write_json
from abliterate.report import schema

if __name__ == "__main__":
    write_json(schema.generated(), Path(schema.__file__).with_name(schema.FILE))
