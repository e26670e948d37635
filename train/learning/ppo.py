"""PPO of Stable-Baselines3 from a fixed rule on, and its policy as a plain network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from prune_env.policy.learned import Network

# gamma and lambda are 1 since an episode is judged as a whole, at its end. Noise stays through a rollout (gSDE, arXiv
# 2005.05719): noise that is drawn anew in each of a dozen steps cancels out. Found on the training tasks.
SETTINGS: dict[str, Any] = {
    "n_steps": 32,
    "gamma": 1.0,
    "gae_lambda": 1.0,
    "learning_rate": 1e-3,
    "batch_size": 512,
    "n_epochs": 6,
    "use_sde": True,
}
LOG_STD = -3.0  # 1 is the whole range of a parameter; gSDE's noise is a sum over the 64 units of the last layer
SMALLEST_SCALE = 0.02  # features that deviate less are not read
LARGEST_START = 0.95  # of a rule parameter that a policy starts at: at 1 the policy could not move


class Scaled(BaseFeaturesExtractor):
    """Scales features to mean 0 and deviation 1."""

    def __init__(self, observation_space: spaces.Box, shift: list[float], scale: list[float]):
        super().__init__(observation_space, len(shift))
        self.shift, self.scale = (nn.Parameter(torch.tensor(x), requires_grad=False) for x in (shift, scale))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return (observations - self.shift) / self.scale


def build(env: VecEnv, rule: list[float], shift: list[float], scale: list[float], seed: int) -> PPO:
    """Return a PPO model whose policy is a fixed rule (R,); `shift` and `scale` (D,) standardise the features."""
    policy = {
        "net_arch": [64, 64],
        "features_extractor_class": Scaled,
        "features_extractor_kwargs": {"shift": shift, "scale": scale},
        "log_std_init": LOG_STD,
    }
    model = PPO("MlpPolicy", env, policy_kwargs=policy, device="cpu", seed=seed, **SETTINGS)
    last: Any = model.policy.action_net
    with torch.no_grad():
        last.weight.mul_(0.01)
        last.bias.copy_(torch.tensor(np.clip(rule, -LARGEST_START, LARGEST_START)))
    return model


def network_of(model: PPO, card: dict[str, Any]) -> Network:
    """Return the policy of a model as a plain network of unscaled features."""
    policy: Any = model.policy
    modules = [*policy.mlp_extractor.policy_net, policy.action_net]
    layers: list[tuple[NDArray, NDArray]] = [
        (module.weight.detach().numpy().copy(), module.bias.detach().numpy().copy())
        for module in modules
        if isinstance(module, nn.Linear)
    ]
    scaling = policy.features_extractor
    return of_scaled(layers, scaling.shift.numpy(), scaling.scale.numpy(), card)


def of_scaled(layers: list[tuple[NDArray, NDArray]], shift: NDArray, scale: NDArray, card: dict[str, Any]) -> Network:
    """Return a policy of plain features from layers that take `(features - shift) / scale`."""
    weight, bias = layers[0]
    weight = weight / scale
    return Network([(weight, bias - weight @ shift), *layers[1:]], "tanh", "clip", card)
