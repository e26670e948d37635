"""Which samples should this epoch train on? Dynamic data pruning as a Gymnasium environment."""

from importlib.metadata import version

import gymnasium

from prune_env.env import PruneEnv
from prune_env.pruner import Pruner
from prune_env.selection import select

__all__ = ["PruneEnv", "Pruner", "select"]
__version__ = version("prune-env")

for _name, _dataset in {
    "Digits": "digits",
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100",
    "TinyImageNet": "tiny_imagenet",
    "ImageNet": "imagenet",
    "ImageFolder": "imagefolder",
    "Arrays": "arrays",
}.items():
    # no max_episode_steps: the end of the budget is the end of training, and terminates
    for _id, _face, _vector in (
        (_name, "prune_env.env:PruneEnv", "prune_env.policy.vector:PruneVectorEnv"),
        (f"{_name}Summary", "prune_env.policy.wrappers:SummaryEnv", "prune_env.policy.wrappers:vector_summary"),
    ):
        gymnasium.register(
            f"prune_env/{_id}-v0", entry_point=_face, vector_entry_point=_vector, kwargs={"dataset": _dataset}
        )
