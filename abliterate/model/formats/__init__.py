"""How numbers are stored: block-scaled FP8, MXFP4, and rounding that keeps what was removed removed."""
