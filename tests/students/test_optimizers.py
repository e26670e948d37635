"""The optimisers are torch's, bit for bit."""

import pytest
import torch

from prune_env.students.optimizers import SGD, AdamW
from prune_env.students.recipes import Recipe


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_steps_are_those_of_torch_and_a_state_goes_on(momentum: float):
    recipe = Recipe("mlp:4", 8, 0.1, momentum=momentum, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=generator), torch.randn(4, generator=generator), torch.randn(2)]
    ours, theirs = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    settings = {"momentum": momentum, "weight_decay": 0.01, "nesterov": momentum > 0}
    reference, optimizer = torch.optim.SGD(theirs, 0.1, **settings, fused=True), SGD(ours, recipe)
    for step in range(6):
        if step == 3:
            state = optimizer.state_dict()
            optimizer = SGD(ours, recipe)
            optimizer.load_state_dict(state)
        reference.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        for one, two in zip(ours[:2], theirs[:2], strict=True):  # the third has no gradient, and stays
            one.grad = two.grad = torch.randn(one.shape, generator=generator)
        optimizer.step()
        reference.step()
        for one, two in zip(ours, theirs, strict=True):
            assert torch.equal(one, two)
    assert torch.equal(ours[2], start[2])
    with pytest.raises(ValueError, match="one group"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


def test_adamw_is_torch_s_and_a_state_goes_on():
    recipe = Recipe("mlp:4", 8, 0.1, 0.01, "adamw", momentum=0.8)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=generator), torch.randn(4, generator=generator), torch.randn(2)]
    ours, theirs = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    reference = torch.optim.AdamW(theirs, 0.1, betas=(0.8, 0.999), weight_decay=0.01, fused=True)
    optimizer = AdamW(ours, recipe)
    for step in range(6):
        if step == 3:
            state = optimizer.state_dict()
            optimizer = AdamW(ours, recipe)
            optimizer.load_state_dict(state)
        reference.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        for one, two in zip(ours[: 1 + step], theirs[: 1 + step], strict=True):  # the second and third begin later
            one.grad = two.grad = torch.randn(one.shape, generator=generator)
        optimizer.step()
        reference.step()
        for one, two in zip(ours, theirs, strict=True):
            assert torch.equal(one, two)
