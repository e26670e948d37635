"""Student networks by name, with weights drawn from a generator of their own."""

from __future__ import annotations

import functools
import hashlib
import importlib
import re
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from prune_env.checks import named

NAMES = ("mlp", "convnet", "resnet9", "resnet18", "torchvision:NAME", "module:function of your own")
FAMILIES = tuple(name.partition(":")[0] for name in NAMES[:-1])
Factory = Callable[[int, int, int], nn.Module]  # of channels, size and classes


class Seeded(TorchDispatchMode):
    """Inside, every random operation draws from `generator`, and the global one is neither read nor written.

    Layers initialise themselves, and dropout draws its masks, through the global generator only.
    """

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.generator = generator
        self.drew = False  # whether anything did

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports torch._dynamo around the first call, which takes 1.5 s

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        names = [argument.name for argument in func._schema.arguments]
        if {"dropout_p", "dropout"} & set(names):  # fused attention and recurrent layers, which take no generator
            given = dict(zip(names, args, strict=False)) | kwargs
            if given.get("dropout_p") or given.get("dropout"):
                raise ValueError(
                    f"{func} draws its dropout from torch's global generator: leave that dropout out, or run attention "
                    "under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
                )
            return func(*args, **kwargs)
        self.drew = True
        if func is torch.ops.aten.native_dropout.default:  # fused on CUDA, where it takes no generator
            return self._dropout(*args, **kwargs)
        return func.overloadpacket(*args, **{**kwargs, "generator": self.generator})

    def _dropout(self, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
        if train is False:
            return x, torch.ones_like(x, dtype=torch.bool)
        keep = torch.empty_like(x).bernoulli_(1.0 - p, generator=self.generator)
        return x * keep / max(1.0 - p, 1e-12), keep.bool()


def build(model: str | Factory, channels: int, size: int, classes: int, seed: int) -> nn.Module:
    """Return a new network from (B, channels, size, size) to (B, classes), on the CPU, in float32.

    Args:
        model: `mlp`, `convnet`, `resnet9` or `resnet18` (CIFAR stem); the first three take their widths after
            a colon, as in `mlp:128-64` or `convnet:64-256-256`. `torchvision:NAME` is any classifier of
            torchvision without its pretrained weights. `module:function` of your own, or from Python the function
            itself, is called with channels, size and classes, and makes a new network.
        channels, size: of the images.
        classes: number of outputs.
        seed: of the weights.

    Raises ValueError for an unknown name, or widths that do not fit it, TypeError for what is no network.
    """
    name, make = named("model", model), _factory(model)
    family, _, rest = name.partition(":")
    with Seeded(torch.Generator().manual_seed(seed)):
        if make is not None:
            return _own(name, make, channels, size, classes)
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


def _factory(model: str | Factory) -> Factory | None:
    """Return the caller's own function, or the one of this name; None for the other names."""
    if not isinstance(model, str):
        return model
    module, _, function = model.partition(":")
    if module in FAMILIES or not all(part.isidentifier() for part in (function, *module.split("."))):
        return None
    try:
        return getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # a module of yours can raise anything
        raise ValueError(f"model {model!r} cannot be imported: {type(error).__name__}: {error}") from error


def _own(name: str, make: Factory, channels: int, size: int, classes: int) -> nn.Module:
    """Return a network of the caller's own, whatever it was left as."""
    if isinstance(make, nn.Module):
        raise TypeError(f"model {name!r} is a network; it must be a function that makes one, anew for each run")
    model = make(channels, size, classes)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {name!r} made a {type(model).__name__}; it must make a torch.nn.Module")
    if any(map(is_lazy, model.parameters())):
        model.eval()(torch.zeros(2, channels, size, size))
    return model.cpu().float()


class Traits(NamedTuple):
    """What a network is seen to do in training."""

    random: bool  # it draws random numbers (dropout, stochastic depth)
    channels_last: bool  # it has convolutions, for which that is faster, and takes it
    outline: str = ""  # of the caller's own network: digest of its modules and the shapes of its weights


def check(model: str | Factory, channels: int, size: int, classes: int) -> Traits:
    """Try such a network on two images, in training mode.

    Raises ValueError unless it takes such images, and makes logits of them; and what `build` raises.
    """
    make = _factory(model)
    seen = _tried if isinstance(make, Hashable) else _tried.__wrapped__
    return seen(model, make, channels, size, classes)


def flops(model: str | Factory, channels: int, size: int, classes: int) -> int:
    """Return the floating-point operations of one image's forward pass: products of matrices and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode  # it takes a moment, and few runs have a reference

    network, counter = build(model, channels, size, classes, seed=0).eval(), FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.zeros(1, channels, size, size))
    return max(1, counter.get_total_flops())


@functools.lru_cache(maxsize=256)  # the environment asks for each task of a distribution, and again for each run
def _tried(model: Any, make: Any, channels: int, size: int, classes: int) -> Traits:
    """As `check`; `make` is the caller's own function, which a name can stand for anew in a notebook."""
    name = named("model", model)
    network, outline, error = build(model, channels, size, classes, seed=0).train(), "", None
    if make is not None:
        other = build(model, channels, size, classes, seed=0)
        if set(network.parameters()) & set(other.parameters()):
            raise ValueError(f"model {name!r} made two networks that share weights; each run needs its own: copy them")
        weights, others = network.state_dict(), other.state_dict()
        if not all(torch.equal(weights[key], others[key]) for key in weights):
            raise ValueError(f"model {name!r} made two networks of one seed with other weights; draw them with torch")
        shapes = [(key, tuple(value.shape)) for key, value in weights.items()]
        shown = re.sub(" at 0x[0-9a-f]+", "", str(network))  # addresses differ from process to process
        outline = hashlib.sha256(f"{shown}{shapes}".encode()).hexdigest()
    # views of images in channels_last fail, as in x.view(len(x), -1)
    for memory_format in [torch.channels_last] * is_convolutional(network) + [torch.contiguous_format]:
        network.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
        images = torch.zeros(2, channels, size, size).contiguous(memory_format=memory_format)
        try:
            with torch.no_grad(), Seeded(torch.Generator().manual_seed(0)) as seeded:
                logits = network(images)
        except (RuntimeError, AssertionError, ValueError) as failed:
            error = failed
            continue
        made = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if made != (2, classes):
            raise ValueError(f"model {name!r} makes {made} of two images; it must make logits {(2, classes)}")
        return Traits(seeded.drew, memory_format == torch.channels_last, outline)
    raise ValueError(f"model {name!r} does not take images of {size} pixels (image_size): {error}") from error


def _widths(name: str, text: str, default: tuple[int, ...], count: int | None = None) -> tuple[int, ...]:
    if not text:
        return default
    parts = text.split("-")
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) != (count or len(parts)):
        example = f"{name.partition(':')[0]}:{'-'.join(map(str, default))}"
        raise ValueError(f"model {name!r} has the widths {text!r}; write them as in {example!r}")
    return tuple(map(int, parts))


class FullyConnected(nn.Sequential):
    """A network that `mlp` builds."""


def mlp(features: int, classes: int, widths: tuple[int, ...]) -> nn.Module:
    """Build a fully connected network with ReLU and without normalisation."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in widths:
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return FullyConnected(*layers, nn.Linear(features, classes))


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


def is_fully_connected(model: nn.Module) -> bool:
    """Say whether the network is one that `mlp` builds."""
    return isinstance(model, FullyConnected)


SMALL = 2**25  # multiplications of a forward pass: below, threads wait for each other longer than they compute


def is_small(model: nn.Module, rows: int) -> bool:
    """Say whether a network without convolutions trains as fast on one thread, in batches of so many rows.

    On a busy machine with two cores, two threads take 400 times as long as one for 64-64-10 in batches of 64
    (2**18 multiplications), 40 times for 256-256-10 (2**22), and twice for 1024-1024-10 in batches of 128 (2**27).
    """
    return not is_convolutional(model) and rows * sum(p.numel() for p in model.parameters()) <= SMALL


def is_convolutional(model: nn.Module) -> bool:
    """Say whether channels-last images and bfloat16 are worth it."""
    return any(isinstance(module, nn.Conv2d) for module in model.modules())
