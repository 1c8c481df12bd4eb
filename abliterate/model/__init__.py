"""Models: where they come from, their chat templates, stored tensors and number formats, layouts and edits."""
