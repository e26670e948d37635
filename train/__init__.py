"""Programs that run from the checkout: `python -m train.evaluate`."""

import gc

# Importing torch makes half a million objects that stay. Python would look through them for garbage again and again,
# and once more when it exits: together a quarter of the time that a short program takes.
gc.disable()
import torch  # noqa: E402, F401

gc.freeze()
gc.enable()
