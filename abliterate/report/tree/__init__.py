"""report.json as typed records: its parts are composed of those that the stages compute."""
