"""SGD and AdamW as torch's fused ones compute them, without what torch has around them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from prune_env.students.recipes import Recipe


class Optimizer:
    """What optimisers share: the settings, and buffers for each parameter. Names and states are torch's.

    The methods of torch's optimisers import torch._dynamo at their first call, which takes 1.5 s, and `step` takes ten
    times as long as the kernel it calls for a small network.

    Args:
        parameters: of the model, on one device.
        recipe: `lr`, `momentum` and `weight_decay` are read.
    """

    def __init__(self, parameters: Iterable[Tensor], recipe: Recipe):
        self.parameters = list(parameters)
        self.param_groups: list[dict[str, Any]] = [
            {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
        ]
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)  # buffers by their names

    def step(self) -> None:
        """Descend along the gradients of the parameters that have one."""
        raise NotImplementedError

    def buffers(self, name: str, parameters: Iterable[Tensor]) -> list[Tensor]:
        """Return the live buffer of each parameter: zeros before its first step."""
        for p in parameters:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        return [self.state[p][name] for p in parameters]

    def state_dict(self) -> dict[str, Any]:
        """The live buffers, by the place of their parameter, and the settings."""
        state = {i: dict(self.state[p]) for i, p in enumerate(self.parameters) if p in self.state}
        return {"state": state, "param_groups": [dict(group) for group in self.param_groups]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of one for the same network. Raises ValueError for another kind of state."""
        if len(state["param_groups"]) != 1:
            raise ValueError("the state's optimiser must have one group of parameters")
        self.param_groups = [dict(group) for group in state["param_groups"]]
        self.state = defaultdict(dict)
        self.state |= {self.parameters[i]: dict(buffers) for i, buffers in state["state"].items()}


class SGD(Optimizer):
    """SGD with (Nesterov) momentum and weight decay, bit for bit `torch.optim.SGD(fused=True)`."""

    @torch.no_grad()
    def step(self) -> None:
        """Descend along the gradients of the parameters that have one."""
        (group,) = self.param_groups
        parameters = [p for p in self.parameters if p.grad is not None]
        momenta = self.momenta(parameters) if group["momentum"] else []
        torch._fused_sgd_(  # pyright: ignore[reportPrivateImportUsage]
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            momenta,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["momentum"] > 0.0,
            maximize=False,
            is_first_step=False,
        )

    def momenta(self, parameters: Iterable[Tensor] | None = None) -> list[Tensor]:
        """Return the live momentum of each parameter: zeros before its first step, from which that is torch's."""
        return self.buffers("momentum_buffer", self.parameters if parameters is None else parameters)


class AdamW(Optimizer):
    """AdamW (arXiv 1711.05101), bit for bit `torch.optim.AdamW(fused=True)`: momentum is beta_1, beta_2 is 0.999."""

    @torch.no_grad()
    def step(self) -> None:
        """Descend along the gradients of the parameters that have one."""
        (group,) = self.param_groups
        parameters = [p for p in self.parameters if p.grad is not None]
        for p in parameters:
            if "step" not in self.state[p]:
                self.state[p]["step"] = torch.zeros((), device=p.device)
        steps = self.buffers("step", parameters)
        torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
        torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            self.buffers("exp_avg", parameters),
            self.buffers("exp_avg_sq", parameters),
            [],
            steps,
            lr=group["lr"],
            beta1=group["momentum"],
            beta2=0.999,
            weight_decay=group["weight_decay"],
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


KINDS = {"sgd": SGD, "adamw": AdamW}  # by the name in a recipe
