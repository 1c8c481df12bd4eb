"""The bars of the first screen: what the replies of each set are, and what their answers are worth."""
