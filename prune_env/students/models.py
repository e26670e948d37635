"""Student networks by name, with weights drawn from a generator of their own."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = ("mlp", "convnet", "resnet9", "resnet18", "torchvision:NAME")


class Seeded(TorchDispatchMode):
    """Inside, every random operation draws from `generator`, and the global one is neither read nor written.

    Layers initialise themselves, and dropout draws its masks, through the global generator only.
    """

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.generator = generator

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports torch._dynamo around the first call, which takes 1.5 s

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten.native_dropout.default:  # fused on CUDA, where it takes no generator
            return self._dropout(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            return func.overloadpacket(*args, **{**kwargs, "generator": self.generator})
        return func(*args, **kwargs)

    def _dropout(self, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
        if train is False:
            return x, torch.ones_like(x, dtype=torch.bool)
        keep = torch.empty_like(x).bernoulli_(1.0 - p, generator=self.generator)
        return x * keep / max(1.0 - p, 1e-12), keep.bool()


def build(name: str, channels: int, size: int, classes: int, seed: int) -> nn.Module:
    """Return a new network from (B, channels, size, size) to (B, classes), on the CPU, in float32.

    Args:
        name: `mlp`, `convnet`, `resnet9` or `resnet18` (CIFAR stem); the first three take their widths after
            a colon, as in `mlp:128-64` or `convnet:64-256-256`. `torchvision:NAME` is any classifier of
            torchvision without its pretrained weights.
        channels, size: of the images.
        classes: number of outputs.
        seed: of the weights.

    Raises ValueError for an unknown name, or widths that do not fit it.
    """
    family, _, rest = name.partition(":")
    with Seeded(torch.Generator().manual_seed(seed)):
        if family == "mlp":
            return mlp(channels * size * size, classes, _widths(name, rest, (64,)))
        if family == "convnet":
            return convnet(channels, classes, _widths(name, rest, (16, 64, 64), count=3))
        if family == "resnet9":
            return resnet9(channels, classes, _widths(name, rest, (64, 128, 256, 512), count=4))
        if name == "resnet18":
            return resnet18(channels, classes)
        if family == "torchvision":
            return _torchvision(name, rest, channels, classes)
    raise ValueError(f"model {name!r} is not known; there are {', '.join(NAMES)}")


@functools.lru_cache(maxsize=256)  # the environment asks for each task of a distribution
def check(name: str, channels: int, size: int, classes: int) -> bool:
    """Say whether training such a network draws random numbers. Raises ValueError unless it takes such images."""
    model = build(name, channels, size, classes, seed=0).eval()
    try:
        with torch.no_grad():
            model(torch.zeros(2, channels, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"model {name!r} does not take images of {size} pixels (image_size): {error}") from error
    return is_random(model)


def _widths(name: str, text: str, default: tuple[int, ...], count: int | None = None) -> tuple[int, ...]:
    if not text:
        return default
    parts = text.split("-")
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) != (count or len(parts)):
        example = f"{name.partition(':')[0]}:{'-'.join(map(str, default))}"
        raise ValueError(f"model {name!r} has the widths {text!r}; write them as in {example!r}")
    return tuple(map(int, parts))


def mlp(features: int, classes: int, widths: tuple[int, ...]) -> nn.Module:
    """Build a fully connected network with ReLU and without normalisation."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in widths:
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


def convnet(channels: int, classes: int, widths: tuple[int, ...]) -> nn.Module:
    """Build three blocks of two convolutions, shaped like airbench's (arXiv 2404.00498), whose size is 64-256-256."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.MaxPool2d(2)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers += [*_conv(width, width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Compute relu(short(x) + long(x))."""

    def __init__(self, long: nn.Module, short: nn.Module):
        super().__init__()
        self.long = long
        self.short = short

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.short(x) + self.long(x))


def _block(inputs: int, outputs: int, stride: int) -> Residual:
    long = nn.Sequential(_conv(inputs, outputs, stride), nn.ReLU(inplace=True), _conv(outputs, outputs))
    same = inputs == outputs and stride == 1
    return Residual(long, nn.Identity() if same else _conv(inputs, outputs, stride, kernel=1))


def resnet9(channels: int, classes: int, widths: tuple[int, ...]) -> nn.Module:
    """Build the DAWNBench network: a stem, three pooled stages, the first and last with a residual block."""
    stem, first, second, third = widths

    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        return [*_conv(inputs, outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2)]

    return nn.Sequential(
        *_conv(channels, stem),
        nn.ReLU(inplace=True),
        *stage(stem, first),
        _block(first, first, 1),
        *stage(first, second),
        *stage(second, third),
        _block(third, third, 1),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(third, classes),
    )


def resnet18(channels: int, classes: int) -> nn.Module:
    """Build ResNet-18 (arXiv 1512.03385) with the 3x3 stem for 32-pixel images that the pruning papers use."""
    blocks: list[nn.Module] = []
    for inputs, width in ((64, 64), (64, 128), (128, 256), (256, 512)):
        blocks += [_block(inputs, width, stride=1 if width == inputs else 2), _block(width, width, stride=1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    # The stem is made last: the order decides which weights come of a seed.
    return nn.Sequential(*_conv(channels, 64), nn.ReLU(inplace=True), *blocks, *head)


def _torchvision(name: str, rest: str, channels: int, classes: int) -> nn.Module:
    import torchvision

    if rest not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(f"model {name!r}: torchvision.models has no classifier called {rest!r}")
    if channels != 3:
        raise ValueError(f"model {name!r} takes images of 3 channels; these have {channels}")
    # these two would return auxiliary outputs beside the logits
    extra = {"aux_logits": False, "init_weights": True} if rest in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(rest, weights=None, num_classes=classes, **extra)


def is_random(model: nn.Module) -> bool:
    """Say whether a training pass draws random numbers (dropout, stochastic depth)."""
    # by name: importing torchvision, whose the last one is, takes longer than a run on the digits
    kinds = {"Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "StochasticDepth"}
    random = [module for module in model.modules() if kinds & {kind.__name__ for kind in type(module).__mro__}]
    return any(float(getattr(module, "p")) > 0.0 for module in random)  # noqa: B009  (not every module has one)


def is_fully_connected(model: nn.Module) -> bool:
    """Say whether the network is one that `mlp` builds."""
    return all(isinstance(module, nn.Sequential | nn.Flatten | nn.Linear | nn.ReLU) for module in model.modules())


SMALL = 2**25  # multiplications of a forward pass: below, threads wait for each other longer than they compute


def is_small(model: nn.Module, rows: int) -> bool:
    """Say whether a fully connected network trains as fast on one thread, in batches of so many rows.

    On a busy machine with two cores, two threads take 400 times as long as one for 64-64-10 in batches of 64
    (2**18 multiplications), 40 times for 256-256-10 (2**22), and twice for 1024-1024-10 in batches of 128 (2**27).
    """
    return is_fully_connected(model) and rows * sum(p.numel() for p in model.parameters()) <= SMALL


def is_convolutional(model: nn.Module) -> bool:
    """Say whether channels-last images and bfloat16 are worth it."""
    return any(isinstance(module, nn.Conv2d) for module in model.modules())
