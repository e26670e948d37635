"""Streams of random numbers of a run, one a purpose: generators are seeded with [seed of the run, stream, ...]."""

WEIGHTS, ORDER, AUGMENTATION, MASKS, AGENT = range(5)  # the agent's has the seed that `reset` was given
