"""Models: where they come from, their chat template and positions, their layouts, hooks and forward passes."""
