"""A loop of one's own with a `Pruner`: against the environment, and against hand-counted figures."""

import copy
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import agents
from agents.infobatch import InfoBatch
from prune_env import PruneEnv, Pruner, select
from prune_env.ranks import Ranks
from prune_env.stats import BOUNDS, OF_LOSSES
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
    def evaluate(self) -> tuple[float, list[float]]:
        """Accuracy, of all and of each class."""
        right = (self.model(self.val_images).argmax(1) == self.val_labels).float()
        return float(right.mean()), [float(right[self.val_labels == c].mean()) for c in range(10)]

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
        self.pruner.end_epoch(*self.evaluate())


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
        val_class_accuracy=env.running.val_class_accuracy,
        least=1,
        ema=recipe.ema,
    )
    loop = Loop(env, pruner, recipe)
    loader = DataLoader(TensorDataset(loop.images, loop.labels), batch_sampler=pruner)
    terminated, compared = False, 0
    while not terminated:
        np.testing.assert_allclose(pruner.observe()["loss"], observation["loss"], atol=1e-4)
        observation, _, terminated, _, info = env.step(agent(observation, rng))
        loop.epoch(loader)
        for name in ("label", "spent", "budget"):
            np.testing.assert_array_equal(pruner.observe()[name], observation[name])
        if np.any(pruner.observe()["visits"] != observation["visits"]):
            # the two round unlike: samples whose losses are equal but for that changed places, and the runs part
            assert spec == "swdpp"
            assert compared >= 2
            assert np.mean(pruner.observe()["visits"] != observation["visits"]) < 0.01
            return
        compared += 1
        assert pruner.val_accuracy == pytest.approx(info["val_accuracy"], abs=1e-6)
        np.testing.assert_allclose(pruner.observe()["val_class_accuracy"], observation["val_class_accuracy"], atol=1e-6)
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


def saved(pruner: Pruner) -> dict:
    """Return its state from a file, as torch reads one by default."""
    file = io.BytesIO()
    torch.save(pruner.state_dict(), file)
    file.seek(0)
    return torch.load(file)


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
    pruner, dataset = toy(agents.make("ucb:keep=0.5"), history=True)
    first = play(pruner, dataset, model, 8)  # two batches into the third epoch
    state = saved(pruner)
    other, _ = toy(agents.make("ucb:keep=0.5"), history=True)
    other.load_state_dict(state)
    assert first + play(other, dataset, model, 10**6) == whole
    assert other.history()["kept"].sum() == other.observe()["visits"].sum()
    with pytest.raises(ValueError, match="the state is of 50 samples; there are 40"):
        toy(everything, 40)[0].load_state_dict(state)


def test_a_state_is_refused_by_a_pruner_with_other_arguments():
    pruner, dataset = toy(everything)
    for _, index in zip(range(3), pruner.indices(), strict=False):
        pruner.loss(torch.zeros(8, 3), dataset.tensors[1][index], index)
    state, labels = saved(pruner), np.arange(50) % 3
    for settings in (
        {"epochs": 4.0},
        {"batch_size": 16},
        {"seed": 1},
        {"history": True},
        {"agent": agents.make("ucb")},
    ):
        given: dict = {"agent": everything, "epochs": 3.0, "batch_size": 8, **settings}
        with pytest.raises(ValueError, match=f"the state is of a pruner with {next(iter(settings))}=.*; here it is "):
            Pruner(given.pop("agent"), labels, **given).load_state_dict(state)
    for reference, of in ((None, labels[::-1].copy()), (np.zeros(50), labels)):
        with pytest.raises(ValueError, match="a pruner with other labels or references, or with them in another order"):
            Pruner(everything, of, 3.0, batch_size=8, reference=reference).load_state_dict(state)


def test_a_run_that_ends_before_its_budget_says_why():
    pruner, _ = toy(lambda observation, rng: select(np.zeros(50)))
    list(pruner)
    with pytest.warns(UserWarning, match="the run ends at 0% of the budget: the agent keeps no sample"):
        pruner.end_epoch()
    pruner, _ = toy(everything, epochs=2.0)
    for index in pruner.indices():
        pruner.record(index, torch.full((len(index), 3), math.nan) if 0 in index else torch.zeros(len(index), 3))
    with pytest.warns(
        UserWarning, match="the run ends at 50% of the budget: logits or losses of 8 rows are not finite"
    ):
        pruner.end_epoch()
    assert pruner.finished


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
    assert (pruner.done, len(pruner)) == (3, 3)
    with pytest.raises(ValueError, match=r"scores 5 samples: call pruner.score for pruner.to_score\(\)"):
        pruner.end_epoch()
    logits = torch.zeros(5, 3)
    logits[:, 0] = 5.0
    pruner.score(pruner.to_score(), logits)
    with pytest.raises(RuntimeError, match=r"take the state before that, or after pruner\.end_epoch"):
        pruner.state_dict()
    pruner.end_epoch()
    assert pruner.ledger.used == 3 * 20 + 5
    seen = pruner.observe()
    assert seen["visits"].sum() == 20
    np.testing.assert_allclose(seen["confidence"][0], np.exp(5) / (np.exp(5) + 2), rtol=1e-6)


# ---------------------------------------------------------------- losses, precision


def test_losses_alone_select_what_the_cross_entropies_of_the_logits_do():
    def play(pruner: Pruner, alone: bool) -> list[list[int]]:
        rng, seen = torch.Generator().manual_seed(5), []
        while not pruner.finished:
            for index in pruner.indices():
                logits = 3 * torch.randn(50, 3, generator=rng)[index]
                losses = F.cross_entropy(logits, labels[index], reduction="none")
                pruner.record(index, losses=losses) if alone else pruner.record(index, logits)
                seen.append(index.tolist())
            pruner.end_epoch()
        return seen

    labels = torch.arange(50) % 3
    of_logits, _ = toy(agents.make("infobatch"))
    alone = Pruner(agents.make("infobatch"), 50, 3.0, batch_size=8, initial_loss=math.log(3))
    batches = play(of_logits, alone=False)
    assert play(alone, alone=True) == batches
    assert {len(batch) for batch in batches} > {8}  # the last ones of epochs on a part of the samples
    assert [*alone.observe()] == [*OF_LOSSES, "spent", "budget", "val_accuracy"]
    for name, values in alone.observe().items():
        np.testing.assert_allclose(values, of_logits.observe()[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore:the run ends at")
def test_losses_alone_follow_the_formulas_and_one_that_is_not_finite_ends_the_run():
    groups = np.arange(20) % 4
    pruner = Pruner(everything, groups, 10.0, batch_size=6, initial_loss=2.5, ema=0.3)
    seen = pruner.observe()
    assert (seen["loss"] == 2.5).all()
    assert (seen["loss_mean"] == 2.5).all()
    assert seen["label"].tolist() == groups.tolist()
    rng, means, variances = np.random.default_rng(0), np.zeros(20), np.zeros(20)
    for epoch in range(4):
        values = rng.exponential(30.0, 20) - 5.0  # some below 0, some above 100
        if epoch == 3:
            values[7] = np.nan
        for index in pruner.indices():
            weights = pruner.record(index, losses=torch.from_numpy(values)[index].half())
            assert weights.tolist() == [pytest.approx(1 / 6)] * len(index)
        pruner.end_epoch()
        for i, value in enumerate(values.astype(np.float16).astype(float)):
            if np.isnan(value):
                continue
            loss = min(max(value, 0.0), 100.0)
            variances[i] = 0.0 if epoch == 0 else 0.7 * variances[i] + 0.3 * (loss - means[i]) ** 2
            means[i] = loss if epoch == 0 else 0.7 * means[i] + 0.3 * loss
        assert pruner.finished == (epoch == 3)
    seen = pruner.observe()
    np.testing.assert_allclose(seen["loss_mean"], means, rtol=1e-5)
    np.testing.assert_allclose(seen["loss_var"], variances, rtol=1e-4, atol=1e-3)
    assert seen["visits"].tolist() == [4] * 20
    assert seen["age"].tolist() == [1.0 if i == 7 else 0.0 for i in range(20)]


def test_an_agent_that_needs_what_a_loop_does_not_give_is_told_so_at_the_first_step():
    pruner = Pruner(agents.make("middle"), 50, 3.0, batch_size=8, initial_loss=1.0)
    list(pruner)  # ranks losses
    pruner = Pruner(lambda seen, rng: select(seen["margin"] > 0), 50, 3.0, batch_size=8, initial_loss=1.0)
    with pytest.raises(KeyError, match="the agent reads 'margin', and the loop gives losses without logits"):
        list(pruner)
    pruner, index = Pruner(everything, 50, 3.0, batch_size=8, initial_loss=1.0), torch.arange(8)
    pruner.begin_epoch()
    with pytest.raises(ValueError, match=r"made with initial_loss: give it losses, \(B,\), and no logits"):
        pruner.loss(torch.zeros(8, 3), index % 3, index)
    pruner, _ = toy(everything)
    pruner.begin_epoch()
    with pytest.raises(ValueError, match="logits are missing: a loop that has losses alone makes the pruner with"):
        pruner.record(index, losses=torch.zeros(8))


def test_losses_of_your_own_stand_beside_the_statistics_of_the_logits():
    pruner, _ = toy(everything)
    for index in pruner.indices():
        logits = torch.zeros(len(index), 3)
        logits[:, 0] = math.log(2)  # probabilities 1/2, 1/4, 1/4
        pruner.record(index, logits, losses=index / 10)
    pruner.end_epoch()
    seen = pruner.observe()
    np.testing.assert_allclose(seen["loss"], np.arange(50) / 10, rtol=1e-6)
    np.testing.assert_allclose(seen["confidence"], np.where(np.arange(50) % 3, 0.25, 0.5), rtol=1e-6)
    assert pruner.train_accuracy == pytest.approx(17 / 50)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_and_accumulated_gradients_are_those_of_a_plain_loop(precision):
    """Gradients over two batches, from logits of 8 or 11 bits, with the loss taken under autocast or not."""
    weights = np.linspace(0.5, 5.4, 50)
    pruner, dataset = toy(lambda observation, rng: select(weights))
    under = torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16)
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).to(precision).requires_grad_()
    plain = logits.detach().double().requires_grad_()
    for index in pruner.indices():
        with under:
            loss = pruner.loss(logits[index], dataset.tensors[1][index], index) / 2
        assert loss.dtype == torch.float32
        loss.backward()
        nll = -plain[index].log_softmax(1)[torch.arange(len(index)), dataset.tensors[1][index]]
        own = (nll * torch.from_numpy(weights)[index]).sum() / 8 / 2
        assert float(loss.detach()) == pytest.approx(float(own.detach()), rel=1e-5)
        own.backward()
        if pruner.done % 2 == 0 or pruner.done == len(pruner):
            assert logits.grad is not None
            assert plain.grad is not None
            torch.testing.assert_close(logits.grad.double(), plain.grad, rtol=torch.finfo(precision).eps, atol=1e-6)
            logits.grad = plain.grad = None
    pruner.end_epoch()
    seen = pruner.observe()
    assert all(seen[name].dtype == np.float32 for name in BOUNDS)
    nll = -plain.detach().log_softmax(1)[torch.arange(50), dataset.tensors[1]]
    np.testing.assert_allclose(seen["loss"], nll, rtol=1e-5)
    assert not pruner.finished


@pytest.mark.filterwarnings("ignore:the run ends at")
@pytest.mark.parametrize("scored", [math.nan, math.inf, 0.0])
def test_a_scored_sample_whose_logits_are_not_finite_ends_the_run(scored):
    pruner, dataset = toy(lambda observation, rng: select(np.arange(50) < 20, score=np.arange(50) >= 45))
    for index in pruner.indices():
        pruner.loss(torch.zeros(len(index), 3), dataset.tensors[1][index], index)
    logits = torch.zeros(5, 3)
    logits[2, 1] = scored
    pruner.score(pruner.to_score(), logits)
    pruner.end_epoch()
    assert pruner.finished == (scored != 0.0)


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
    with pytest.raises(ValueError, match=r"ids has shape \(1,\); it must be \(4,\), one name a sample"):
        pruner.write_history(tmp_path / "h.csv", ids=["a"])
    with pytest.raises(RuntimeError, match="history=True"):
        toy(everything)[0].history()


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


def train_on_this_rank(checkpoint: Path | None = None) -> dict[str, np.ndarray]:
    """Train a linear model for two epochs, the first with blending; return its weights and what the pruner has seen.

    With a path, a new pruner goes on in the second epoch from the state that rank 0 has written there.
    """

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

    def train(batches: int) -> None:
        loader = DataLoader(dataset, batch_sampler=pruner)
        for _, index, (images, labels) in zip(range(batches), pruner.indices(), loader, strict=False):
            images = pruner.mix(images, dataset.tensors[0][pruner.partners(index)], index)
            optimizer.zero_grad()
            pruner.loss(network(images), labels, index).backward()
            optimizer.step()

    for epoch in range(2):
        if checkpoint and epoch:
            train(2)
            state = pruner.state_dict()
            if dist.get_rank() == 0:
                torch.save(state, checkpoint)
            dist.barrier()
            pruner, _ = toy(agent)
            pruner.load_state_dict(torch.load(checkpoint))
        train(100)
        scored = pruner.to_score()
        pruner.score(scored, model(dataset.tensors[0][scored]))
        if not dist.is_initialized():
            pruner.end_epoch([0.5, 0.7][epoch])
        elif epoch == 0:
            pruner.end_epoch(0.4 + 0.2 * dist.get_rank())  # each rank validates on a part
        else:
            pruner.end_epoch(0.7 if dist.get_rank() == 0 else None)
        assert pruner.val_accuracy == pytest.approx([0.5, 0.7][epoch])
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    return {**weights, **pruner.observe()}


@pytest.mark.parametrize("resumed", [False, True])
def test_two_ranks_train_as_one(tmp_path, resumed):
    """Also if both go on in mid-epoch from the state of one."""

    def work(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=rank, world_size=2)
        torch.save(train_on_this_rank(tmp_path / "state.pt" if resumed else None), tmp_path / f"{rank}.pt")
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
    monkeypatch.setattr(Ranks, "sum", lambda self, values: 2 * values)
    pruner, _ = toy(lambda observation, rng: select(np.arange(50) == 3))
    with pytest.raises(ValueError, match="the agent keeps 1 samples; each of 2 ranks needs one"):
        list(pruner)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"agent": InfoBatch}, r"agent is <class .*InfoBatch'>; it must be a function or an object"),
        ({"agent": "infobatch"}, "agent is 'infobatch'; it must be a function or an object to call"),
        ({"labels": ["cat", "dog"]}, r"labels have dtype <U3 .* np.unique\(labels, return_inverse=True\)"),
        ({"labels": np.zeros(4)}, "labels have dtype float64"),
        ({"labels": [0, -1]}, "there is a label -1"),
        ({"labels": [0, 0]}, "there is one class, .*: give losses, and initial_loss here"),
        ({"labels": 0, "initial_loss": 1.0}, "labels is 0; without classes it is the number of samples"),
        ({"classes": 2}, "classes is 2; there is a label 2"),
        ({"epochs": math.inf}, "epochs is inf; it must be a positive number"),
        ({"epochs": "10"}, "epochs is '10'; it must be a number"),
        ({"epochs": 0.1}, r"budget is 0\.1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"ema": 5}, "ema is 5"),
        ({"initial_loss": 1e4}, r"initial_loss is 10000\.0; it must lie in \[0, 100\]: scale the losses"),
        ({"val_accuracy": 93.5}, r"accuracy of validation is 93\.5; it must lie in \[0, 1\]"),
        ({"val_class_accuracy": [0.5, 0.5, math.nan]}, r"accuracy of validation is nan; it must lie in \[0, 1\]"),
    ],
)
def test_wrong_arguments_name_themselves(wrong, said):
    given: dict = {"agent": everything, "labels": np.arange(6) % 3, "epochs": 2.0, "batch_size": 2, **wrong}
    with pytest.raises((ValueError, TypeError), match=said):
        Pruner(**given)


def test_numbers_of_numpy_and_labels_in_any_form_are_taken(tmp_path):
    def play(*given, **settings) -> dict:
        pruner = Pruner(*given, history=True, **settings)
        for index in pruner.indices():
            pruner.loss(torch.zeros(len(index), 3), index % 3, index)
        pruner.end_epoch(np.float64(0.5))
        torch.save(pruner.state_dict(), tmp_path / "state.pt")
        return pruner.history()

    expected = play(everything, np.arange(20) % 3, 2.0, batch_size=8, seed=2**70)
    for labels in ((np.arange(20) % 3).tolist(), torch.arange(20) % 3, np.arange(20, dtype=np.uint8) % 3):
        found = play(everything, labels, np.float32(2.0), batch_size=np.int64(8), seed=2**70, least=np.int64(2))
        np.testing.assert_equal(found, expected)
        again = Pruner(everything, labels, 2, batch_size=8, seed=2**70, history=True)
        again.load_state_dict(torch.load(tmp_path / "state.pt"))
        assert again.step == 1


def test_what_a_loop_gives_is_checked_where_it_enters():
    pruner, dataset = toy(everything)
    for call in (pruner.end_epoch, lambda: pruner.loss(torch.zeros(8, 3), dataset.tensors[1][:8], torch.arange(8))):
        with pytest.raises(RuntimeError, match="no epoch has begun"):
            call()
    index = next(pruner.indices())
    for shape in ((8,), (7, 3), (8, 5)):
        with pytest.raises(ValueError, match=r"logits have shape .*; there are 8 indices and 3 classes"):
            pruner.record(index, torch.zeros(shape))
    for shape in ((), (8, 1)):
        with pytest.raises(ValueError, match=r"losses have shape .*; they must be one for each of 8 indices"):
            pruner.record(index, torch.zeros(8, 3), losses=torch.zeros(shape))
    images = torch.zeros(8, 6, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"images have dtype torch.uint8; blend them as floats"):
        pruner.mix(images, images, index)
    assert pruner.mix(images.bfloat16(), images.bfloat16(), index).dtype == torch.bfloat16
    for index in pruner.indices():
        pruner.record(index, torch.zeros(len(index), 3))
    with pytest.raises(RuntimeError, match="all 7 batches of this epoch are recorded: call end_epoch"):
        pruner.record(index, torch.zeros(len(index), 3))
    pruner.end_epoch(val_class_accuracy=[0.1, 0.2, 0.3])
    np.testing.assert_allclose(pruner.observe()["val_class_accuracy"], [0.1, 0.2, 0.3])
    assert pruner.val_accuracy == 0.0


@pytest.mark.parametrize("loader", [True, False])
def test_a_forgotten_end_epoch_is_named(loader):
    pruner, dataset = toy(everything)
    batches = DataLoader(TensorDataset(torch.arange(len(dataset))), batch_sampler=pruner)

    def train() -> int:
        indices = (index for (index,) in batches) if loader else pruner.indices()
        return len([pruner.record(index, torch.zeros(len(index), 3)) for index in indices])

    assert train() == 7
    assert train() == 0  # as of a run that was stopped between its last batch and end_epoch
    with pytest.raises(RuntimeError, match="all 7 batches of this epoch are done: call end_epoch"):
        train()
    pruner.end_epoch()
    assert train() == 7


def test_loss_names_what_it_cannot_take():
    pruner, dataset = toy(everything)
    index = next(pruner.indices())
    labels = dataset.tensors[1][index]
    with pytest.raises(ValueError, match=r"Other targets than labels, such as soft ones, .* `record`"):
        pruner.loss(torch.zeros(8, 3), torch.nn.functional.one_hot(labels, 3).float(), index)
    with pytest.raises(ValueError, match=r"logits have shape \(8, 1\); there are 8 indices and 3 classes"):
        pruner.loss(torch.zeros(8, 1), labels, index)
    pruner = Pruner(everything, 50, 2.0, batch_size=8, initial_loss=1.0)
    with pytest.raises(ValueError, match="the pruner was made with initial_loss: give it losses"):
        pruner.loss(torch.zeros(8, 1), torch.zeros(8), next(pruner.indices()))
    pruner = Pruner(lambda seen, rng: select(seen["label"] >= 0), 50, 2.0, batch_size=8, initial_loss=1.0)
    with pytest.raises(KeyError, match="give labels, or groups, in place of the number of samples"):
        pruner.begin_epoch()


def test_every_rank_needs_a_row_of_each_batch(monkeypatch):
    monkeypatch.setattr("prune_env.ranks.here", lambda: Ranks(1, 2))
    with pytest.raises(ValueError, match=r"batch_size is 1; .* at least the number of ranks"):
        Pruner(everything, np.arange(6), 2.0, batch_size=1)


def test_all_ranks_need_the_same_seed(monkeypatch):
    seed = toy(everything, seed=4)[0].seed
    monkeypatch.setattr("prune_env.ranks.here", lambda: Ranks(1, 2))
    monkeypatch.setattr(Ranks, "sum", lambda self, values: values + seed)  # the other rank's
    assert toy(everything, seed=4)[0].seed == seed
    with pytest.raises(ValueError, match="seed is 5, and another one on another rank"):
        toy(everything, seed=5)


def test_a_loader_of_other_batches_is_noticed_at_the_first_one():
    pruner, dataset = toy(everything)
    index = next(pruner.indices())
    with pytest.raises(ValueError, match="does the loader have the pruner as batch_sampler"):
        pruner.loss(torch.zeros(8, 3), dataset.tensors[1][:8], index)
