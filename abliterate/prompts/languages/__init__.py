"""The languages that the program knows: one data file each, named by the language's code."""
