"""Publishing an edited checkpoint to the Hub."""
