# %% [markdown]
# # Find a direction, look at it, take it out
#
# The stages one by one, from Python. Each cell can be run by itself in an editor that knows `# %%` cells, or the whole file by
# `python scripts/examples/find_a_direction.py`. The environment says otherwise than here: MODEL, OUT, LIMIT (prompts of a set).

# %%
import os
from collections import Counter

import abliterate

MODEL = os.environ.get("MODEL", "smollm2-refuser")
OUT = os.environ.get("OUT", "runs/example")
LIMIT = int(os.environ.get("LIMIT", "32"))

# %% [markdown]
# What should go, and what must stay. The baseline of a bundled target is its own control set: the same questions about something
# that no model withholds.

# %%
model = abliterate.load_model(MODEL)
sets = abliterate.RoleSets(["censorship"], keep=["harmful"], harmless="harmless", limit=LIMIT)

# %% [markdown]
# Activations at the last tokens of each prompt, after every block; and from them the directions. None of the prompts is a test prompt.

# %%
activations = abliterate.collect(model, sets)
directions = abliterate.estimate(activations, ["difference-of-means"])

# %% [markdown]
# How far apart the direction puts the two sets on prompts that it was not made from: block by block, at the last token.

# %%
name, position = "difference-of-means", -1
separation = directions.cohens_d[name][-1 - position, 1:]  # [block]; activation index 0 is the embedding
for block, value in enumerate(separation.tolist()):
    print(f"block {block:2d}  {'█' * round(4 * max(0.0, value))} {value:.2f}")

# %% [markdown]
# An edit of one's own: the direction of the best of the first four fifths of the blocks, out of every matrix that writes into the stream.

# %%
layers = model.folder.layers
block = int(separation[: max(1, int(0.8 * layers))].argmax())
vector = directions.direction[name][-1 - position, block + 1]
edit = abliterate.edit_from_direction(vector, layers, tied=model.folder.tied)
print(f"the direction of block {block}, length {vector.norm():.3g}")

# %% [markdown]
# What the model says before and after. The edit is only hooked in here, nothing is written yet.

# %%
questions = sets.sets("target")[0].of("test", min(LIMIT, 12))


def outcomes(transcripts: list[abliterate.Transcript]) -> dict[str, int]:
    """How many replies have which outcome."""
    return dict(Counter(transcript.verdict().outcome for transcript in transcripts))


print("before:", outcomes(abliterate.generate(model, questions)))
print("hooked:", outcomes(abliterate.generate(model, questions, edit=edit)))

# %% [markdown]
# The same edit in the weights, with a proof; and the proof again, from the bytes on the disk.

# %%
result = abliterate.edit_checkpoint(MODEL, edit, OUT)
measured, compared = abliterate.verify(OUT, base=MODEL)
print(f"{OUT}: {result.tensors} tensors edited, at most {result.proof.worst.left:.1e} of the direction left")
print(f"verified: {measured} edited tensors, {compared} compared with the base")

# %% [markdown]
# The new checkpoint, asked again; with the interval that belongs to so few questions.

# %%
edited = abliterate.load_model(OUT)
replies = abliterate.generate(edited, questions)
withheld = abliterate.figures([(reply, reply.verdict()) for reply in replies]).withheld
print("edited:", outcomes(replies))
print(f"withheld: {withheld.k} of {withheld.n}, 95 % interval {withheld.ci95[0]:.2f} to {withheld.ci95[1]:.2f}")
