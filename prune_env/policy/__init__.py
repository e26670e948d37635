"""For policies: small observations and actions, tasks, many runs at once, and a reward to learn from."""

from prune_env.policy.paired import PairedReward, VectorPairedReward

__all__ = ["PairedReward", "VectorPairedReward"]
