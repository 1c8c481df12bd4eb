"""The tuner: learn an edit's strengths and directions by gradients through the frozen model, from its own short replies."""
