"""Forecast a run's disk traffic, memory, compute and time from file headers and two seconds of measuring; the model is not run."""
