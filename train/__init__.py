"""The programs: `prune-env evaluate` in any folder, or `python -m train.evaluate` in the checkout."""

import gc

# Importing torch makes half a million objects that stay. Python would look through them for garbage again and again,
# and once more when it exits: together a quarter of the time that a short program takes.
gc.disable()
import torch  # noqa: E402, F401

gc.freeze()
gc.enable()
