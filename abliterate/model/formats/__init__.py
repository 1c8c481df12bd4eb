"""Storage formats: block-scaled FP8, MXFP4, and rounding that doesn't bring back what was removed."""
