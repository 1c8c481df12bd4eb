"""Names of the files that say what was edited in a checkpoint."""

PROOF = "abliteration.json"
PLAN = "abliteration.plan"  # a plan file; not called .safetensors, which engines load as weights
