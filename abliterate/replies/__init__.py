"""Replies of a model: the engines that generate them, and the transcript files that store them."""
