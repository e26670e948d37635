"""How many threads torch trains on, and what a fork does to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# A forked child has one thread but torch believes in all of its parent's, and waits for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Run torch's operations on one thread inside, if `wanted`; the setting is then as it was, also after an error.

    Setting the number twice takes a few microseconds.
    """
    before = torch.get_num_threads()
    if not wanted or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
