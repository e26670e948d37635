"""Learning what to prune: features, rules, tasks, wrappers, and a policy that is trained."""

from prune_env.policy.learned import Learned

__all__ = ["Learned"]
