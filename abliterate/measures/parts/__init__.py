"""The parts of report.json that are computed from replies and predictions, as typed records."""
