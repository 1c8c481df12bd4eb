"""How a model is run: forward passes, hooks, replies and gradients, whole in memory, block by block, or over several processes."""
