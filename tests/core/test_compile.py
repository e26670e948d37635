"""Compiled passes: the numbers of the plain ones, and nothing is compiled anew whatever is selected."""

import numpy as np
import pytest
import torch

from prune_env import PruneEnv
from prune_env.selection import select
from prune_env.students import models

SMALL = {"budget": 4.0, "train_size": 200, "batch_size": 16, "precision": "float32", "device": "cpu"}


def losses(episodes: int, **settings) -> list[float]:
    """The sum of the statistics' losses at the end of each episode, whose selections have every size."""
    env = PruneEnv("digits", **{**SMALL, **settings})
    ends = []
    for seed in range(episodes):
        seen, _ = env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        done, mixed = False, False
        while not done:
            n = len(seen["loss"])
            weight = np.where(rng.random(n) < rng.uniform(0.1, 1.0), rng.uniform(0.5, 2.0, n), 0.0)
            seen, _, done, _, _ = env.step(select(weight, mixup=0.3 * (rng.random(n) < 0.5) if mixed else None))
            mixed = not mixed
        ends.append(float(seen["loss"].sum()))
    return ends


@pytest.fixture
def counted(monkeypatch):
    """torch.compile without its slow last part, and a list of the graphs that it made."""
    graphs: list[torch.fx.GraphModule] = []
    compile = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **given: compile(f, backend=backend, dynamic=given["dynamic"]))
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield graphs
    torch.compiler.reset()


@pytest.mark.parametrize("model", ["mlp:8", "convnet:2-3-4"])
def test_an_episode_compiles_one_pass_whatever_is_selected(counted, model):
    compiled = losses(3, model=model, compile="step")
    assert len(counted) == 1  # for three students
    np.testing.assert_allclose(compiled, losses(3, model=model), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["step", "graphs"])
@pytest.mark.parametrize("model", ["mlp:8", "convnet:2-3-4"])
def test_torchs_own_compiler_gives_the_same_numbers(model, mode):
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = losses(2, model=model, compile=mode)
    np.testing.assert_allclose(compiled, losses(2, model=model), rtol=1e-3)


def test_only_full_batches_are_compiled(monkeypatch):
    sizes: list[int] = []

    def compile(f, **_):
        def compiled(images, *rest):
            sizes.append(len(images))
            return f(images, *rest)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    assert losses(1, model="mlp:8", compile="step") == losses(1, model="mlp:8")
    assert set(sizes) == {16}
    assert len(sizes) > 20


def test_graphs_are_replayed_and_what_they_return_is_kept(monkeypatch):
    """A replay writes to the memory that the one before it returned."""
    modes: list[str] = []
    returned: dict[object, torch.Tensor] = {}

    def compile(f, mode, **_):
        modes.append(mode)

        def compiled(*given):
            logits = f(*given)
            if f in returned:
                returned[f].data.fill_(np.nan)
            returned[f] = logits
            return logits

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    assert losses(1, model="mlp:8", compile="graphs") == losses(1, model="mlp:8")
    assert set(modes) == {"reduce-overhead"}


def test_unknown_words_and_networks_with_dropout_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="compile is 'fast'; it must be one of off, step, graphs"):
        PruneEnv("digits", compile="fast")
    monkeypatch.setattr(models, "check", lambda *args: True)
    with pytest.raises(ValueError, match="compile is 'step'; 'mlp' draws random numbers"):
        PruneEnv("digits", compile="step")
