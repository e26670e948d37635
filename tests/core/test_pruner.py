"""A loop of one's own with a `Pruner`: against the environment, and against hand-counted figures."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import agents
from prune_env import PruneEnv, Pruner, select
from prune_env.ranks import Ranks
from prune_env.students.recipes import Recipe
from tests.helpers.processes import fork, wait


class Loop:
    """What a user writes: a model, an optimiser, and the digits as tensors."""

    def __init__(self, env: PruneEnv, pruner: Pruner, recipe: Recipe):
        trainer = env.running
        self.pruner, self.recipe = pruner, recipe
        self.model: nn.Module = copy.deepcopy(trainer.model)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=True,
        )
        self.images, self.val_images = (
            (data.images.float() - trainer.mean) * trainer.scale for data in (env.train_data, env.val_data)
        )
        self.labels, self.val_labels = env.train_data.labels, env.val_data.labels

    @torch.no_grad()
    def evaluate(self) -> float:
        return float((self.model(self.val_images).argmax(1) == self.val_labels).float().mean())

    def batch(self, index: Tensor, images: Tensor, labels: Tensor) -> None:
        if self.pruner.begin_epoch().rows.mixed:
            images = self.pruner.mix(images, self.images[self.pruner.partners(index)], index)
        loss = self.pruner.loss(self.model(images), labels, index)
        self.optimizer.param_groups[0]["lr"] = self.recipe.rate(self.pruner.progress)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def epoch(self, loader: DataLoader) -> None:
        for index, (images, labels) in zip(self.pruner.indices(), loader, strict=True):
            self.batch(index, images, labels)
        self.pruner.end_epoch(self.evaluate())


@pytest.mark.parametrize("spec", ["full", "infobatch", "swdpp", "ucb", "learned"])
def test_a_loop_selects_and_learns_what_the_environment_does(spec, monkeypatch):
    monkeypatch.setattr("prune_env.pruner.PENDING_LOGITS", 3000)  # entered several times an epoch, as many logits are
    env = PruneEnv(budget=4.0)
    observation, _ = env.reset(seed=3)
    agent, rng = agents.make(spec), np.random.default_rng([3, 4])
    recipe = env.recipe
    pruner = Pruner(
        agents.make(spec),
        env.train_data.labels.numpy(),
        4.0,
        batch_size=recipe.batch_size,
        seed=3,
        val_accuracy=env.running.val_accuracy,
        least=1,
        ema=recipe.ema,
    )
    loop = Loop(env, pruner, recipe)
    loader = DataLoader(TensorDataset(loop.images, loop.labels), batch_sampler=pruner)
    terminated = False
    while not terminated:
        np.testing.assert_allclose(pruner.observe()["loss"], observation["loss"], atol=1e-4)
        observation, _, terminated, _, info = env.step(agent(observation, rng))
        loop.epoch(loader)
        for name in ("visits", "label", "spent", "budget"):
            np.testing.assert_array_equal(pruner.observe()[name], observation[name])
        assert pruner.val_accuracy == pytest.approx(info["val_accuracy"], abs=1e-6)
        assert pruner.train_accuracy == pytest.approx(info["train_accuracy"], abs=1e-6)
        assert pruner.finished == terminated
        assert pruner.ledger.spent == info["total_spent"]


def toy(agent, n: int = 50, epochs: float = 3.0, **settings) -> tuple[Pruner, TensorDataset]:
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.randn(n, 6, generator=rng), torch.arange(n) % 3
    return Pruner(agent, labels.numpy(), epochs, batch_size=8, **settings), TensorDataset(images, labels)


def everything(observation: dict, rng: np.random.Generator) -> dict:
    return select(np.ones(len(observation["loss"])))


def test_workers_that_stay_fetch_the_batches_of_every_epoch_ahead():
    pruner, dataset = toy(agents.make("random:keep=0.5,fresh=True"))
    loader = DataLoader(dataset, batch_sampler=pruner, num_workers=2, persistent_workers=True)
    model = nn.Linear(6, 3)
    epochs = 0
    while not pruner.finished:
        seen = []
        for index, (images, labels) in zip(pruner.indices(), loader, strict=True):
            torch.testing.assert_close(images, dataset.tensors[0][index])
            pruner.loss(model(images), labels, index)
            seen.append(index)
        assert len(seen) == len(pruner) == 3  # 25 of 50 in batches of 8, and a lone row in the last one
        assert [len(index) for index in seen] == [8, 8, 9]
        assert len(torch.cat(seen).unique()) == 25
        pruner.end_epoch()
        epochs += 1
    assert epochs == 6
    assert pruner.ledger.spent == 3.0


def test_a_state_goes_on_in_the_middle_of_an_epoch_with_the_batches_that_would_have_followed():
    def play(pruner: Pruner, dataset: TensorDataset, model: nn.Module, batches: int) -> list[list[int]]:
        seen: list[list[int]] = []
        while not pruner.finished:
            for index in pruner.indices():
                if len(seen) == batches:
                    return seen
                images, labels = (part[index] for part in dataset.tensors)
                pruner.loss(model(images), labels, index)
                seen.append(index.tolist())
            pruner.end_epoch(0.5)
        return seen

    torch_rng = torch.Generator().manual_seed(1)
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 6, generator=torch_rng))
    whole = play(*toy(agents.make("ucb:keep=0.5")), model, 10**6)
    pruner, dataset = toy(agents.make("ucb:keep=0.5"))
    first = play(pruner, dataset, model, 8)  # two batches into the third epoch
    state = copy.deepcopy(pruner.state_dict())
    other, _ = toy(agents.make("ucb:keep=0.5"))
    other.load_state_dict(state)
    assert first + play(other, dataset, model, 10**6) == whole
    with pytest.raises(ValueError, match="the state is of 50 samples; there are 40"):
        toy(everything, 40)[0].load_state_dict(state)


def test_weights_are_those_of_the_action_over_the_batch_size():
    weights = np.linspace(0.0, 9.8, 50)
    pruner, dataset = toy(lambda observation, rng: select(weights))
    for index in pruner.indices():
        logits = torch.randn(len(index), 3, requires_grad=True)
        loss = pruner.loss(logits, dataset.tensors[1][index], index)
        plain = [-torch.log_softmax(z, 0)[i % 3] * 0.2 * i for z, i in zip(logits, index.tolist(), strict=True)]
        torch.testing.assert_close(loss, sum(plain) / 8)


def test_what_the_agent_wants_and_the_loop_leaves_out_is_refused_by_name():
    pruner, dataset = toy(lambda observation, rng: select(np.arange(50) < 20, 0.3, np.arange(50) < 5))
    indices = list(pruner.indices())
    labels = dataset.tensors[1]
    with pytest.raises(ValueError, match=r"blends images \(mixup\): call pruner.mix"):
        pruner.loss(torch.zeros(8, 3), labels[indices[0]], indices[0])
    with pytest.raises(RuntimeError, match="0 of 3 batches of this epoch were trained on"):
        pruner.end_epoch()
    for index in indices:
        partners = pruner.partners(index)
        assert (partners >= 20).all()
        images, others = dataset.tensors[0][index], dataset.tensors[0][partners]
        mixed = pruner.mix(images, others, index)
        torch.testing.assert_close(mixed, 0.7 * images + 0.3 * others)
        logits = torch.randn(len(index), 3)
        nll = -logits.log_softmax(1)
        rows = torch.arange(len(index))
        plain = 0.7 * nll[rows, labels[index]] + 0.3 * nll[rows, labels[partners]]
        torch.testing.assert_close(pruner.loss(logits, labels[index], index), plain.sum() / 8)
    with pytest.raises(ValueError, match=r"scores 5 samples: give the logits of pruner.to_score\(\) to pruner.score"):
        pruner.end_epoch()
    logits = torch.zeros(5, 3)
    logits[:, 0] = 5.0
    pruner.score(pruner.to_score(), logits)
    pruner.end_epoch()
    assert pruner.ledger.used == 3 * 20 + 5
    seen = pruner.observe()
    assert seen["visits"].sum() == 20
    np.testing.assert_allclose(seen["confidence"][0], np.exp(5) / (np.exp(5) + 2), rtol=1e-6)


def test_the_history_says_what_was_kept_by_the_users_own_names(tmp_path):
    kept = [(0, 2.0), (3, 1.0)], [(3, 0.5)]  # (sample, weight) of two epochs

    def agent(observation: dict, rng: np.random.Generator) -> dict:
        weight = np.zeros(4)
        for sample, value in kept[int(observation["spent"][0] > 0)]:
            weight[sample] = value
        return select(weight)

    pruner = Pruner(agent, np.array([0, 1, 0, 1]), 0.75, batch_size=1, history=True)
    while not pruner.finished:
        for index in pruner.indices():
            pruner.loss(torch.zeros(len(index), 2), torch.from_numpy(pruner.labels)[index], index)
        pruner.end_epoch()
    pruner.write_history(tmp_path / "h.csv", ids=["a.png", "b.png", "c, d.png", "e.png"])
    assert (tmp_path / "h.csv").read_text().splitlines() == [
        "epoch,id,kept,weight,visits",
        "1,a.png,1,2.0,1",
        "1,b.png,0,0.0,0",
        '1,"c, d.png",0,0.0,0',
        "1,e.png,1,1.0,1",
        "2,a.png,0,0.0,1",
        "2,b.png,0,0.0,0",
        '2,"c, d.png",0,0.0,0',
        "2,e.png,1,0.5,2",
    ]
    with pytest.raises(ValueError, match="ids has 1 names; there are 4 samples"):
        pruner.write_history(tmp_path / "h.csv", ids=["a"])
    with pytest.raises(RuntimeError, match="history=True"):
        toy(everything)[0].write_history(tmp_path / "h.csv")


def test_the_history_can_be_a_parquet_file(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pruner, dataset = toy(everything, epochs=2.0, history=True)
    while not pruner.finished:
        for index in pruner.indices():
            pruner.loss(torch.zeros(len(index), 3), dataset.tensors[1][index], index)
        pruner.end_epoch()
    pruner.write_history(tmp_path / "h.parquet")
    table = parquet.read_table(tmp_path / "h.parquet").to_pydict()
    assert table["visits"] == [1] * 50 + [2] * 50
    assert table["id"] == [*range(50)] * 2


def train_on_this_rank() -> dict[str, np.ndarray]:
    """Train a linear model for two epochs, the first with blending; return its weights and what the pruner has seen."""

    def agent(observation: dict, rng: np.random.Generator) -> dict:
        kept = rng.random(50) < 0.7
        return select(kept * rng.uniform(0.5, 2.0, 50), 0.2 * (observation["spent"][0] == 0), score=~kept)

    pruner, dataset = toy(agent)
    model: nn.Module = nn.Linear(6, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    network = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(dataset, batch_sampler=pruner)
    for _ in range(2):
        for index, (images, labels) in zip(pruner.indices(), loader, strict=True):
            images = pruner.mix(images, dataset.tensors[0][pruner.partners(index)], index)
            optimizer.zero_grad()
            pruner.loss(network(images), labels, index).backward()
            optimizer.step()
        scored = pruner.to_score()
        pruner.score(scored, model(dataset.tensors[0][scored]))
        pruner.end_epoch()
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    return {**weights, **pruner.observe()}


def test_two_ranks_train_as_one(tmp_path):
    def work(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=rank, world_size=2)
        torch.save(train_on_this_rank(), tmp_path / f"{rank}.pt")
        dist.destroy_process_group()

    pids = [fork(lambda rank=rank: work(rank)) for rank in range(2)]
    assert [wait(pid) for pid in pids] == [0, 0]
    alone = train_on_this_rank()
    for rank in range(2):
        theirs = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert theirs.keys() == alone.keys()
        for name, value in alone.items():
            np.testing.assert_allclose(theirs[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_every_rank_needs_a_sample(monkeypatch):
    monkeypatch.setattr("prune_env.ranks.here", lambda: Ranks(1, 2))
    pruner, _ = toy(lambda observation, rng: select(np.arange(50) == 3))
    with pytest.raises(ValueError, match="the agent keeps 1 samples; each of 2 ranks needs one"):
        list(pruner)


def test_wrong_arguments_name_themselves():
    with pytest.raises(ValueError, match="labels have dtype float64"):
        Pruner(everything, np.zeros(4), 2.0, batch_size=2)
    with pytest.raises(ValueError, match="classes is 2; there is a label 2"):
        Pruner(everything, np.arange(3), 2.0, batch_size=2, classes=2)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Pruner(everything, np.arange(3), 2.0, batch_size=0)
    with pytest.raises(ValueError, match=r"budget is 0\.1"):
        Pruner(everything, np.arange(3), 0.1, batch_size=2)
    with pytest.raises(RuntimeError, match="no epoch has begun"):
        toy(everything)[0].end_epoch()
