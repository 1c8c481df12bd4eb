"""Reports: report.json, report.html and the model card. Nothing here imports torch."""
