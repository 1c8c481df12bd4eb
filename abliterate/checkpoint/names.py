"""Names of the files in a checkpoint that describe its edit."""

PROOF = "abliteration.json"
PLAN = "abliteration.plan"  # a plan file; not named .safetensors, because engines would load it as weights
