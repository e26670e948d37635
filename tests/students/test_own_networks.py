"""Networks of somebody's own train as ours do: from the run's seed alone, whatever their layers are."""

import functools
import io
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor, nn
from torch.nn import functional as F

from prune_env import PruneEnv, select
from prune_env.students import models
from prune_env.students.batched_mlp import train_epochs
from prune_env.students.recipes import tuned
from tests.helpers.reference import toy
from tests.helpers.runs import own_digits, play, run, same, trainer


class Careless(nn.Module):
    """As many write them: it views its convolutions' output, and drops out by a function, of which no module tells."""

    def __init__(self, channels: int, size: int, classes: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * size * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(F.dropout(x.view(len(x), -1), 0.3, self.training))


class Attentive(nn.Module):
    """Attends between rows of pixels, whose kernel has a dropout that no generator is given to."""

    def __init__(self, channels: int, size: int, classes: int, dropout: float = 0.0):
        super().__init__()
        self.attention = nn.MultiheadAttention(size, 2, dropout, batch_first=True)
        self.gru, self.head = nn.GRU(size, 4, 2, batch_first=True, dropout=dropout), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(dim=1)
        x, _ = self.gru(self.attention(x, x, x, need_weights=False)[0])
        return self.head(x[:, -1])


def lazy(channels: int, size: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))


def perceptron(channels: int, size: int, classes: int, width: int = 5) -> nn.Sequential:
    """What `mlp:5` is, from its weights on."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, width), nn.ReLU(), nn.Linear(width, classes))


@dataclass
class Maker:
    """It can be called and not be hashed."""

    width: int

    def __call__(self, channels: int, size: int, classes: int) -> nn.Module:
        return perceptron(channels, size, classes, self.width)


TASK: dict[str, Any] = {"train_size": 60, "budget": 2.0, "batch_size": 16, "precision": "float32", "device": "cpu"}


@pytest.mark.parametrize("model", [Careless, lazy, Attentive, functools.partial(Attentive, dropout=0.2)])
def test_a_run_follows_from_its_seed_and_leaves_the_global_generator_be(model):
    before = torch.get_rng_state()
    runs = [play(PruneEnv(model=model, **TASK), seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize(
    "model", [perceptron, Maker(5), functools.partial(perceptron, width=5), f"{__name__}:perceptron"]
)
def test_a_network_of_ours_under_another_name_gives_the_same_numbers(model):
    assert same(play(PruneEnv(model=model, lr=0.2, **TASK), 0), play(PruneEnv(model="mlp:5", lr=0.2, **TASK), 0))


def test_it_trains_alone_beside_batched_ones():
    """It has the layers that ours have, and is not taken for one."""

    class Shifted(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) - 3.0 * input.flatten(1)[:, :3]

    def shifted(channels: int, size: int, classes: int) -> nn.Module:
        return Shifted(*perceptron(channels, size, classes))

    kinds = [shifted, "mlp:5", shifted, "mlp:5"]
    together, alone = ([trainer(model=model) for model in kinds] for _ in range(2))
    chosen = [student.select(select(np.ones(24))) for student in together]
    results = train_epochs(together, chosen)
    for student, result in zip(alone, results, strict=True):
        assert run(student, np.ones(24)).val_loss == pytest.approx(result.val_loss, rel=1e-5)
    assert results[0].val_loss > results[1].val_loss + 0.3  # the shift is no part of ours


def test_its_norms_see_their_first_batches_evenly():
    """As those of ours do, and a last batch of one row joins the one before it."""
    student = trainer(toy(17, 3, 3, 16), model=Careless, batch_size=8, budget=4.0)
    assert student.sizes(17) == [8, 9]
    run(student, np.ones(17))
    norm = next(module for module in student.model.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.momentum == 0.5  # after two batches
    assert student.format == torch.contiguous_format  # a view of channels-last images fails


def test_it_goes_on_from_a_file_with_its_masks():
    straight, resumed = (trainer(toy(24, 3, 3, 16), model=Careless, budget=5.0) for _ in range(2))
    file = io.BytesIO()
    run(straight, np.ones(24))
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert run(straight, np.ones(24)) == run(resumed, np.ones(24))


def test_a_name_survives_json_and_a_vector_env_takes_both_forms():
    env = gym.make("prune_env/Digits-v0", model=f"{__name__}:Careless", **TASK)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json())).unwrapped
    assert isinstance(again, PruneEnv)
    assert again.recipe.model == f"{__name__}:Careless" == PruneEnv(model=Careless, **TASK).recipe.plain()["model"]
    for model in (Careless, [f"{__name__}:Careless", "mlp:5"]):
        many = gym.make_vec("prune_env/Digits-v0", num_envs=2, model=model, **TASK)
        many.reset(seed=0)
        many.step(many.action_space.sample())
    summary = gym.make("prune_env/ArraysSummary-v0", dataset=own_digits(), model=Careless, budget=1.5)
    summary.reset(seed=0)
    summary.step(summary.action_space.sample())


def test_its_rate_is_customary_until_it_is_tuned():
    for model in (Careless, f"{__name__}:Careless"):
        found = tuned("digits", model, 10)
        assert (found.values["lr"], found.fits) == (0.05, False)
        assert found.description == "lr 0.05: customary, not tuned"


def test_what_draws_is_seen_in_a_trial():
    drawing = [Careless, lazy, Attentive, functools.partial(Attentive, dropout=0.2), perceptron]
    assert [models.check(model, 1, 8, 10).random for model in drawing] == [True, False, False, True, False]
    x = torch.zeros(1, 1, 4, 8)
    with models.Seeded(torch.Generator()), pytest.raises(ValueError, match="draws its dropout from torch's global"):
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x, 0.1)


def test_its_outline_tells_apart_what_has_one_name():
    outlines = [models.check(Maker(width), 1, 8, 10).outline for width in (5, 6, 5)]
    assert outlines[0] == outlines[2] != outlines[1]

    class Shown(nn.Linear):
        act: Any

        def extra_repr(self) -> str:
            return f"{super().extra_repr()}, {self.act}"

    def shown(channels: int, size: int, classes: int) -> nn.Module:
        layer = Shown(channels * size**2, classes)
        layer.act = lambda x: x  # its address is not that of another process
        alive.append(layer)
        return nn.Sequential(nn.Flatten(), layer)

    alive: list[nn.Module] = []
    assert models.check(shown, 1, 8, 10).outline == models._tried.__wrapped__(shown, shown, 1, 8, 10).outline


KEPT = perceptron(1, 8, 10)
ELSEWHERE = np.random.default_rng(0)


def drawn_elsewhere(channels: int, size: int, classes: int) -> nn.Module:
    network = perceptron(channels, size, classes)
    nn.init.constant_(next(network.parameters()), ELSEWHERE.random())
    return network


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (KEPT, "is a network; it must be a function that makes one"),
        (lambda channels, size, classes: KEPT, "made two networks that share weights"),
        (lambda channels, size, classes: nn.Sequential(KEPT[:2], nn.Linear(5, classes)), "share weights"),
        (lambda channels, size, classes: perceptron(channels, size, 7), r"makes \(2, 7\) .* logits \(2, 10\)"),
        (lambda channels, size, classes: {"layers": 3}, "made a dict"),
        (drawn_elsewhere, "made two networks of one seed with other weights; .* with torch"),
        (lambda channels, size, classes: nn.Linear(3, 10), "does not take images of 8 pixels"),
        (lambda channels, size, classes: nn.LSTM(8, 10), "does not take images|makes tuple"),
        ("no_such_module:make", "'no_such_module:make' cannot be imported: ModuleNotFoundError"),
        ("json:make", "'json:make' cannot be imported: AttributeError"),
        ("perceptron", "'perceptron' is not known"),
        (7, "model is 7"),
    ],
)
def test_what_makes_no_student_is_refused_when_the_environment_is_made(model, words):
    with pytest.raises((TypeError, ValueError), match=words):
        PruneEnv(model=model, **TASK)


def test_compiled_code_must_not_draw():
    with pytest.raises(ValueError, match=r"compile is 'step'; .*Careless.* draws random numbers"):
        PruneEnv(model=Careless, compile="step", **TASK)
