"""The tuner: strengths and directions of an edit, learned by gradients through the frozen model from its own short replies."""
