"""Stored number formats: a module for each, all of one protocol (``format.py``), listed in ``table.py``."""
