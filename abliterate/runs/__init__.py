"""The run folder, resuming in it, and the record of a run."""
