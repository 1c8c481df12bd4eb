"""What an answer is worth: invented, steered, informative or unknown, for prompts whose facts are known; and whether it is hedged."""
