"""Training on a pretended CUDA device, where a tensor on the wrong side fails, and the host's waits counted.

Tensors are fake: they have shapes and devices and no numbers, so whatever needs a number raises.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from prune_env.data import Data, storage
from prune_env.data.source import Samples
from prune_env.selection import Selection, select
from prune_env.students import batched_mlp as together
from prune_env.students import models
from prune_env.students.batched_mlp import Students, train_epochs
from prune_env.students.recipes import Recipe
from prune_env.trainer import Evaluation, Trainer
from tests.helpers.reference import toy

aten = torch.ops.aten


def data(n: int, device: str = "cuda") -> Data:
    images = torch.zeros(n, 3, 16, 16, dtype=torch.uint8, device=device)
    labels = torch.zeros(n, dtype=torch.int64, device=device)
    return Data(images, labels, ("a", "b", "c"), labels, labels.bool(), augment=True)


def selection(n: int, mixed: bool) -> Selection:
    rows = np.arange(n)
    shares = np.full(n, 0.25 if mixed else 0, np.float32)
    return Selection(rows, np.full(n, 1.5, np.float32), rows[::-1].copy() if mixed else rows, shares, rows[:5])


def can_pretend() -> bool:
    """Older releases of torch ask the driver even when the device is a pretended one."""
    try:
        with FakeTensorMode():
            return torch.empty(1, device="cuda")[:, None].device.type == "cuda"
    except RuntimeError:
        return False


pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14) and not can_pretend(),
    reason="this torch cannot pretend to have a CUDA device",
)


@pytest.fixture
def cuda(monkeypatch):
    """Trainers can be built on the pretended device: what cannot be done there is done in another way."""
    build = models.build

    def build_there(*args) -> nn.Module:
        model = build(*args)  # `Module.to` cannot move fake tensors
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(torch.empty(p.shape, device="cuda"))
            for name, b in module._buffers.items():
                if b is not None:
                    module._buffers[name] = torch.empty(b.shape, device="cuda", dtype=b.dtype)
        model.to = lambda *args, **kwargs: model
        return model

    def backward(loss: torch.Tensor, gradient: torch.Tensor | None = None, **kwargs) -> None:
        """Autograd's engine needs a driver. A gradient has the device of its parameter in any case."""
        assert loss.requires_grad
        if gradient is not None:
            _ = loss + gradient  # raises on another device or shape
            assert gradient.shape == loss.shape
        for p in trainers[-1].model.parameters():
            p.grad = torch.empty_like(p)

    def grad(loss: torch.Tensor, of: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor]:
        """Likewise."""
        assert loss.requires_grad
        _ = loss + gradient
        assert gradient.shape == loss.shape
        return (torch.empty_like(of),)

    def fused_sgd(parameters: list, gradients: list, momenta: list, **kwargs) -> None:
        """The fused kernel has no pretended version."""
        for p, gradient, momentum in zip(parameters, gradients, momenta, strict=True):
            assert p.shape == gradient.shape == momentum.shape
            p.add_(gradient + momentum)  # raises on another device

    def evaluate(self: Trainer, data: Data) -> Evaluation:
        """Without numbers there is no accuracy."""
        trainers.append(self)
        self.optimizer.param_groups[0]["fused"] = False  # see fused_sgd
        self.optimizer.param_groups[0]["foreach"] = False
        assert {sums.device.type for sums in self._validate(data)} == {"cuda"}
        return Evaluation(0.5, 1.0, (0.5,), 0)

    trainers: list[Trainer] = []
    monkeypatch.setattr(models, "build", build_there)
    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "backward", backward)
        monkeypatch.setattr(torch, "_fused_sgd_", fused_sgd)
        monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
    with FakeTensorMode():
        yield lambda n=20, model="convnet:3-4-5", precision="float32", smoothing=0.1: Trainer(
            data(n), data(6), Recipe(model, 8, 0.1, precision=precision, label_smoothing=smoothing), 50.0, 0
        )


def train(student: Trainer, mixed: bool = True, k: int | None = None) -> torch.Tensor:
    rows = selection(k or student.ledger.n, mixed)
    return student._train(student.fit(rows))


def score(student: Trainer, scored: int = 5) -> torch.Tensor:
    rows = dataclasses.replace(selection(0, False), scored=np.arange(scored))
    return student.score(student.fit(rows))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["mlp:5", "convnet:3-4-5", "resnet9:2-2-2-2"])
def test_training_and_validation_stay_on_the_device(cuda, model, precision, mixed):
    student = cuda(model=model, precision=precision)
    assert {p.device.type for p in student.model.parameters()} == {"cuda"}
    kinds: set[torch.dtype] = set()
    last = [module for module in student.model.modules() if isinstance(module, nn.Linear)][-1]
    last.register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    counts = train(student, mixed)
    assert kinds == {getattr(torch, precision)}
    assert (counts.device.type, counts.shape) == ("cuda", (3,))
    count = score(student)
    assert (count.device.type, count.shape) == ("cuda", (1,))
    assert kinds == {getattr(torch, precision)}
    assert {sums.device.type for sums in student._validate(student.val_data)} == {"cuda"}
    assert student.stats.table.device.type == "cuda"
    assert all(state["momentum_buffer"].device.type == "cuda" for state in student.optimizer.state.values())


def misplace(student: Trainer, what: str) -> None:
    cpu = torch.device("cpu")
    if what == "moments":
        student.mean = torch.zeros(3, 1, 1, device=cpu)
    elif what == "statistics":
        student.stats.table = torch.zeros(20, 11, device=cpu)
    elif what == "training labels":
        student.train_data = Data(
            student.train_data.images,
            torch.zeros(20, dtype=torch.int64),
            ("a", "b", "c"),
            student.train_data.source,
            student.train_data.wrong,
            augment=True,
        )
    elif what == "training images":
        student.train_data = data(20, "cpu")
    elif what == "a weight":
        layer = next(module for module in student.model.modules() if isinstance(module, nn.Conv2d))
        layer.weight = nn.Parameter(torch.zeros(layer.weight.shape, device=cpu))
    elif what == "the selection":
        student.device = cpu


@pytest.mark.parametrize("does", [train, score])
@pytest.mark.parametrize(
    "what", ["moments", "statistics", "training labels", "training images", "a weight", "the selection"]
)
def test_a_tensor_on_the_wrong_side_fails(cuda, what, does):
    student = cuda()
    does(student)
    misplace(student, what)
    with pytest.raises((RuntimeError, ValueError), match="device"):
        does(student)


class Transfers(TorchDispatchMode):
    """Counts copies between host and device."""

    def __init__(self):
        super().__init__()
        self.up = self.down = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[1] if func is aten.copy_.default else args[0]
            assert isinstance(source, torch.Tensor)
            assert isinstance(out, torch.Tensor)
            self.up += (source.device.type, out.device.type) == ("cpu", "cuda")
            self.down += (source.device.type, out.device.type) == ("cuda", "cpu")
        return out


def test_the_number_of_transfers_does_not_grow_with_the_batches(cuda):
    student = cuda(n=80)
    counted = []
    for k in (8, 16, 79):
        with Transfers() as transfers:
            train(student, k=k)
        assert transfers.down == 0  # each would wait for the device, and so would a number read from it
        counted.append(transfers.up)
    assert counted[0] == counted[1] == counted[2] <= 4
    with Transfers() as transfers:
        student._validate(student.val_data)
    assert (transfers.up, transfers.down) == (0, 0)


def test_the_number_of_transfers_does_not_grow_with_what_is_scored(cuda, monkeypatch):
    monkeypatch.setattr("prune_env.trainer.EVALUATION_BATCH", 8)
    student = cuda(n=80)
    for scored in (0, 1, 8, 79):
        with Transfers() as transfers:
            score(student, scored)
        assert (transfers.up, transfers.down) == (min(scored, 1), 0)  # the indices


def test_images_in_a_file_are_waited_for_once_a_pass(cuda, monkeypatch):
    """Whatever the number of batches; each is sent from a buffer of its own, without a wait."""
    waits: list[int] = []

    def on_host(parts) -> np.ndarray:  # the indices are pretended: they have no numbers
        waits.append(len(parts))
        return np.zeros(sum(map(len, parts)), np.int64)

    def buffer(shape, device) -> tuple[torch.Tensor, np.ndarray]:
        assert device.type == "cuda"
        return torch.empty(shape, dtype=torch.uint8), np.empty(shape, np.uint8)  # no driver to pin memory with

    monkeypatch.setattr(storage, "on_host", on_host)
    monkeypatch.setattr(storage, "buffer", buffer)
    monkeypatch.setattr("prune_env.trainer.FETCHED_PIXELS", 1)
    student = cuda(n=80)
    read: list[int] = []
    monkeypatch.setattr(storage.Mapped, "_gather", lambda _, rows, into: read.append(len(rows)))
    samples = Samples(np.empty((80, 3, 16, 16), np.uint8), np.zeros(80, np.int64), ("a", "b"))
    kept = storage.Mapped(samples, np.arange(80))
    for mixed in (False, True):
        for k in (8, 16, 79):
            student.train_data = data(80)
            with Transfers() as resident:
                train(student, mixed, k)
            student.train_data = dataclasses.replace(student.train_data, images=kept)
            waits.clear()
            read.clear()
            with Transfers() as transfers:
                train(student, mixed, k)
            batches, passes = -(-k // 8), 1 + mixed
            assert waits == [batches] * passes
            assert sum(read) == k * passes
            assert transfers.up == resident.up + batches * passes
            assert transfers.down == 0


# ---------------------------------------------------------------- several students at once


def stack(
    students: list[Trainer], mixed: bool = True, k: int = 20
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """What `train_epochs` does on the device: counts of training, and sums of validation."""
    students = sorted(students, key=lambda s: -s.ledger.n)
    epochs = [s.fit(selection(min(k, s.ledger.n), mixed)) for s in students]
    layers = Students(students)
    counts = layers.train(epochs)
    layers.hand_back()
    return counts, layers.validate()


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("fetched", [1, 2**22])
def test_several_students_stay_on_the_device(cuda, monkeypatch, mixed, fetched):
    monkeypatch.setattr(together, "FETCHED", fetched)
    students = [cuda(n, model="mlp:5") for n in (20, 9, 8)]
    counts, sums = stack(students, mixed)
    assert (counts.device.type, counts.shape) == ("cuda", (3, 3))
    assert [(x.device.type, x.shape) for x in sums] == [("cuda", (3,)), ("cuda", (3, 1 + 2 * 3))]
    for student in students:
        assert {p.device.type for p in student.model.parameters()} == {"cuda"}
        assert student.stats.table.device.type == "cuda"
        assert {state["momentum_buffer"].device.type for state in student.optimizer.state.values()} == {"cuda"}


@pytest.mark.parametrize("what", ["moments", "statistics", "training labels", "training images", "the selection"])
def test_a_tensor_of_one_of_several_on_the_wrong_side_fails(cuda, what):
    students = [cuda(model="mlp:5") for _ in range(2)]
    stack(students)
    misplace(students[0], what)
    with pytest.raises((RuntimeError, ValueError), match="device"):
        stack(students)


def test_the_number_of_transfers_grows_neither_with_the_batches_nor_with_the_students(cuda):
    counted = set()
    for members, k in [(2, 8), (2, 79), (5, 79)]:
        students = [cuda(n=80, model="mlp:5") for _ in range(members)]
        with Transfers() as transfers:
            stack(students, k=k)
        assert transfers.down == 0
        counted.add(transfers.up)
    assert len(counted) == 1
    assert 4 <= counted.pop() <= 14


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.masked_select(x > 0),
        lambda x: float(x.mean()),
    ],
    ids=["item", "bool", "index by a mask", "nonzero", "tolist", "masked_select", "float"],
)
def test_waiting_for_the_pretended_device_fails(cuda, wait):
    student = cuda()
    loss = student.loss

    def waiting(logits, labels):
        wait(logits.detach())
        return loss(logits, labels)

    train(student)
    student.loss = waiting
    with pytest.raises((RuntimeError, ValueError)):
        train(student)


WAITING = {
    "item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "allclose",
    "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__", "argwhere",
}  # fmt: skip


class Waits(TorchFunctionMode):
    """Names the calls for which the host would wait for a device, on real tensors."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        boolean = name == "__getitem__" and any(getattr(x, "dtype", None) is torch.bool for x in as_tuple(args[1]))
        if name in WAITING or boolean or (name == "where" and len(args) == 1):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def as_tuple(x) -> tuple:
    return x if isinstance(x, tuple) else (x,)


@pytest.mark.parametrize("score", [None, np.ones(24)], ids=["", "scored"])
@pytest.mark.parametrize("mixup", [0.0, 0.25])
@pytest.mark.parametrize(
    ("model", "channels", "size"),
    [("mlp:5", 1, 8), ("convnet:3-4-5", 3, 16), ("torchvision:mobilenet_v3_small", 3, 32)],
)
def test_an_epoch_waits_for_the_device_once(model, channels, size, mixup, score):
    train, val = toy(24, 3, channels, size, augment=size > 8), toy(6, 3, channels, size)
    student = Trainer(train, val, Recipe(model, 4, 0.01), 3.0, 0)
    chosen = student.select(select(np.ones(24, bool), mixup, score))
    with Waits() as waits:
        student.train_epoch(chosen)
    assert waits.names == ["tolist"]


@pytest.mark.parametrize("score", [None, np.ones(24)], ids=["", "scored"])
@pytest.mark.parametrize("mixup", [0.0, 0.25])
def test_an_epoch_of_several_students_waits_for_the_device_once(monkeypatch, mixup, score):
    monkeypatch.setattr(together, "FETCHED", 2 * 4 * 3 * 16)  # several times a few batches
    val = toy(6, 3, 1, 8)
    students = [Trainer(toy(24, 3, 1, 8), val, Recipe("mlp:5", 4, 0.01), 3.0, seed) for seed in range(3)]
    chosen = [s.select(select(np.arange(24) < 7 * (s.seed + 1), mixup, score)) for s in students]
    with Waits() as waits:
        train_epochs(students, chosen)
    assert waits.names == ["tolist"]


def test_waits_are_noticed():
    x = torch.ones(3)
    with Waits() as waits:
        x.sum().item()
        bool(x[0] > 0)
        x[x > 0]
        x.cpu()
        float(x[0])
        torch.where(x > 0)
    assert waits.names == ["item", "__bool__", "__getitem__", "cpu", "__float__", "where"]
