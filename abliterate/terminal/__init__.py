"""Output on a terminal: progress, plain lines, and text of others without control characters."""
