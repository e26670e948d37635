"""Learning what to prune: features, rules, tasks, wrappers, a reward to learn from, and a policy that is trained."""

from prune_env.policy.learned import Learned
from prune_env.policy.paired import PairedReward, VectorPairedReward

__all__ = ["Learned", "PairedReward", "VectorPairedReward"]
