"""What a run would read, write, hold, compute and take: from headers and two seconds of measuring; nothing of the model is run."""
