"""The run folder, what is resumed in it, and the record of a run."""
