"""Compiled passes: the numbers of the plain ones, and nothing is compiled anew whatever is selected."""

import numpy as np
import pytest
import torch

from prune_env.selection import select
from prune_env.students import models
from tests.helpers.runs import digits


def losses(episodes: int, **settings) -> list[float]:
    """The sum of the statistics' losses at the end of each episode, whose selections have every size."""
    env = digits(precision="float32", **settings)
    ends = []
    for seed in range(episodes):
        seen, _ = env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        done, mixed = False, False
        while not done:
            weight = np.where(rng.random(100) < rng.uniform(0.1, 1.0), rng.uniform(0.5, 2.0, 100), 0.0)
            seen, _, done, _, _ = env.step(select(weight, mixup=0.3 * (rng.random(100) < 0.5) if mixed else None))
            mixed = not mixed
        ends.append(float(seen["loss"].sum()))
    return ends


def test_an_episode_compiles_one_pass_whatever_is_selected(monkeypatch):  # several seconds, of torch._dynamo
    """With torch.compile, but for its slow last part."""
    graphs: list[torch.fx.GraphModule] = []
    compile = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **given: compile(f, backend=backend, dynamic=given["dynamic"]))
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = losses(2, model="convnet:2-3-4", compile="step")
    torch.compiler.reset()
    assert len(graphs) == 1  # for two students
    np.testing.assert_allclose(compiled, losses(2, model="convnet:2-3-4"), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["step", "graphs"])
@pytest.mark.parametrize("model", ["mlp:8", "convnet:2-3-4"])
def test_torchs_own_compiler_gives_the_same_numbers(model, mode):
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = losses(2, model=model, compile=mode)
    np.testing.assert_allclose(compiled, losses(2, model=model), rtol=1e-3)


def test_only_full_batches_are_compiled_and_what_a_graph_returns_is_kept(monkeypatch):
    """A replay of a graph writes to the memory that the one before it returned."""
    sizes, modes = set(), set()
    returned: list[torch.Tensor] = []

    def compile(f, mode, **_):
        modes.add(mode)

        def compiled(images):
            sizes.add(len(images))
            for before in returned[-1:]:
                before.data.fill_(np.nan)
            returned.append(f(images))
            return returned[-1]

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    assert losses(1, model="mlp:8", compile="graphs") == losses(1, model="mlp:8")
    assert (sizes, modes) == ({16}, {"reduce-overhead"})
    assert len(returned) > 10


def test_networks_with_dropout_are_refused(monkeypatch):
    monkeypatch.setattr(models, "check", lambda *args: models.Traits(True, False))
    with pytest.raises(ValueError, match="compile is 'step'; 'mlp' draws random numbers"):
        digits(compile="step")
