"""How a model is spoken to: its chat template, its thoughts, and what ends a reply."""
