"""Training on a pretended CUDA device, where a tensor on the wrong side fails, and the host's waits counted.

Tensors are fake: they have shapes and devices and no numbers. What needs a number raises, but for `tolist`, which is
the one call for which an epoch may wait; it is counted, and returns zeros.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from prune_env.data import Data
from prune_env.evaluation import Evaluation
from prune_env.selection import Selection, select
from prune_env.students import models
from prune_env.students.batched_mlp import train_epochs
from prune_env.students.recipes import Recipe
from prune_env.trainer import Trainer
from tests.helpers import runs
from tests.helpers.reference import toy

aten = torch.ops.aten


def can_pretend() -> bool:
    """Older releases of torch ask the driver even when the device is a pretended one."""
    # autograd sets up its threads at the first call: eight for a pretended device, and then no fork can train
    torch.ones(1, requires_grad=True).sum().backward()
    try:
        with FakeTensorMode():
            return torch.empty(1, device="cuda")[:, None].device.type == "cuda"
    except RuntimeError:
        return False


pytestmark = pytest.mark.skipif(not can_pretend(), reason="this torch cannot pretend to have a CUDA device")


def data(n: int, device: str = "cuda") -> Data:
    images = torch.zeros(n, 3, 16, 16, dtype=torch.uint8, device=device)
    labels = torch.zeros(n, dtype=torch.int64, device=device)
    return Data(images, labels, ("a", "b", "c"), labels, labels.bool(), augment=True)


def selection(k: int, scored: int = 5) -> Selection:
    """Rows 0 to k - 1, all of them mixed."""
    samples = np.arange(k)
    shares = np.full(k, 0.25, np.float32)
    return Selection(samples, np.full(k, 1.5, np.float32), samples[::-1].copy(), shares, np.arange(scored))


class Event:
    """A moment in a stream that there is not."""

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        pass

    def elapsed_time(self, other: "Event") -> float:
        return 1.0


@pytest.fixture
def cuda(monkeypatch):
    """How to make trainers on the pretended device: what cannot be done there is done in another way."""
    build = models.build
    cuda = SimpleNamespace(waits=0)

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
        built.append(model)
        return model

    def backward(loss: torch.Tensor) -> None:
        """Autograd's engine needs a driver. A gradient has the device of its parameter in any case."""
        assert loss.requires_grad
        assert loss.shape == ()
        for p in built[-1].parameters():
            p.grad = torch.empty_like(p)

    def fused_sgd(parameters: list, gradients: list, momenta: list, **kwargs) -> None:
        """The fused kernel has no pretended version."""
        for p, gradient, momentum in zip(parameters, gradients, momenta, strict=True):
            p.add_(gradient + momentum)  # raises on another device

    def tolist(self: torch.Tensor) -> Any:
        cuda.waits += 1
        assert self.device.type == "cuda"
        return np.zeros(self.shape, np.int64).tolist()

    built: list[nn.Module] = []
    monkeypatch.setattr(models, "build", build_there)
    monkeypatch.setattr(models, "check", lambda model, *shape: models.Traits(False, not model.startswith("mlp")))
    monkeypatch.setattr(
        Trainer, "evaluate", lambda self, data: Evaluation(0.5, 1.0, (0.5,), 0)
    )  # before the first step
    monkeypatch.setattr(FakeTensor, "tolist", tolist)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch, "_fused_sgd_", fused_sgd)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)

    def make(n: int = 12, model: str = "convnet:3-4-5", precision: str = "float32") -> Trainer:
        recipe = Recipe(model, 8, 0.1, precision=precision, label_smoothing=0.1)
        return Trainer(data(n), data(6), recipe, 50.0, 0)

    cuda.trainer = make
    with FakeTensorMode():
        yield cuda


def places(student: Trainer) -> set[str]:
    """The devices of all that a student keeps."""
    momenta = [state["momentum_buffer"] for state in student.optimizer.state.values()]
    return {x.device.type for x in (*student.model.state_dict().values(), *momenta, student.stats.table)}


@pytest.mark.parametrize(
    ("model", "precision"), [("mlp:5", "float32"), ("convnet:3-4-5", "bfloat16"), ("resnet9:2-2-2-2", "float32")]
)
def test_an_epoch_stays_on_the_device_and_waits_once(cuda, model, precision):
    student = cuda.trainer(model=model, precision=precision)
    kinds: set[torch.dtype] = set()
    last = [module for module in student.model.modules() if isinstance(module, nn.Linear)][-1]
    last.register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    result = student.train_epoch(selection(12))
    assert (result.trained, result.scored, cuda.waits) == (12, 5, 1)
    assert kinds == {getattr(torch, precision)}
    assert places(student) == {"cuda"}


def test_an_epoch_of_several_students_stays_on_the_device_and_waits_once(cuda):
    students = [cuda.trainer(n, "mlp:5") for n in (20, 9, 8)]
    train_epochs(students, [selection(student.ledger.n) for student in students])
    assert cuda.waits == 1
    assert set().union(*map(places, students)) == {"cuda"}


@pytest.mark.parametrize("what", ["statistics", "training images", "a weight"])
def test_a_tensor_on_the_wrong_side_fails(cuda, what):
    student = cuda.trainer()
    student.train_epoch(selection(12))
    if what == "statistics":
        student.stats.table = torch.zeros(student.stats.table.shape, device="cpu")
    elif what == "training images":
        student.train_data = data(20, "cpu")
    else:
        layer = next(module for module in student.model.modules() if isinstance(module, nn.Conv2d))
        layer.weight = nn.Parameter(torch.zeros(layer.weight.shape, device="cpu"))
    with pytest.raises((RuntimeError, ValueError), match="device"):
        student.train_epoch(selection(12))


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: float(x.mean())])
def test_another_wait_fails(cuda, wait):
    student = cuda.trainer()
    student.model.register_forward_hook(lambda module, args, out: [wait(out.detach()), out][1])
    with pytest.raises((RuntimeError, ValueError)):
        student.train_epoch(selection(12))


class Transfers(TorchDispatchMode):
    """Counts copies between host and device."""

    def __init__(self):
        super().__init__()
        self.up = self.down = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out: Any = func(*args, **(kwargs or {}))
        if func in (aten._to_copy.default, aten.copy_.default):
            source: Any = args[1] if func is aten.copy_.default else args[0]
            self.up += (source.device.type, out.device.type) == ("cpu", "cuda")
            self.down += (source.device.type, out.device.type) == ("cuda", "cpu")
        return out


def test_the_number_of_transfers_does_not_grow_with_rows_or_students(cuda):
    counted = set()
    for members, k, scored in ((2, 8, 1), (3, 16, 16)):
        students = [cuda.trainer(16, "mlp:5") for _ in range(members)]
        with Transfers() as alone:
            students[0].train_epoch(selection(k, scored))
        with Transfers() as several:
            train_epochs(students, [selection(k, scored=0) for _ in students])
        assert alone.down == several.down == 0  # each would wait for the device
        counted.add((alone.up, several.up))
    assert len(counted) == 1
    alone_up, several_up = counted.pop()
    assert alone_up <= 5
    assert several_up <= 14


# ---------------------------------------------------------------- dropout, which cannot be pretended


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
        index = args[1] if name == "__getitem__" else ()
        parts = index if isinstance(index, tuple) else (index,)
        if name in WAITING or any(getattr(part, "dtype", None) is torch.bool for part in parts):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_an_epoch_with_dropout_waits_for_the_device_once():
    student = runs.trainer(toy(24, 3, 3, 16, augment=True), model=runs.DROPOUT)
    chosen = student.select(select(np.ones(24, bool), 0.25, np.ones(24)))
    with Waits() as waits:
        student.train_epoch(chosen)
    assert waits.names == ["tolist"]


def test_waits_are_noticed():
    x = torch.ones(3)
    with Waits() as waits:
        x.sum().item()
        bool(x[0] > 0)
        x[x > 0]
        x.cpu()
    assert waits.names == ["item", "__bool__", "__getitem__", "cpu"]
