"""Every student builds, from its own seed, with the shapes that its name says."""

import numpy as np
import pytest
import torch
from torch import nn

from prune_env.students import models

OWN = ["mlp", "mlp:7", "mlp:32-16", "convnet", "convnet:4-8-12", "resnet9", "resnet9:4-8-8-12", "resnet18"]
TORCHVISION = ["mobilenet_v3_small", "squeezenet1_1", "mnasnet0_5", "shufflenet_v2_x0_5", "googlenet"]


@pytest.mark.parametrize("name", [*OWN, *(f"torchvision:{name}" for name in TORCHVISION)])
def test_every_name_builds_from_its_seed_alone(name):
    channels, classes = 3, 7
    before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    model = models.build(name, channels, 32, classes, seed=3)
    same = models.build(name, channels, 32, classes, seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_equal(np.random.get_state(), before[1])  # noqa: NPY002
    torch.manual_seed(1)
    other = models.build(name, channels, 32, classes, seed=4)
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    images = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        out = model.train(mode)(images)
        assert out.shape == (2, classes)
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("name", OWN)
def test_own_models_take_any_number_of_channels_and_small_images(name, channels):
    model = models.build(name, channels, 8, 2, seed=0).eval()
    assert model(torch.zeros(1, channels, 8, 8)).shape == (1, 2)


def layers(model: nn.Module, kind: type) -> list:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_widths_are_those_of_the_name():
    mlp = layers(models.build("mlp:32-16", 1, 8, 10, 0), nn.Linear)
    assert [tuple(x.weight.shape) for x in mlp] == [(32, 64), (16, 32), (10, 16)]
    convnet = models.build("convnet:4-8-12", 3, 32, 10, 0)
    shapes = [tuple(x.weight.shape[:2]) for x in layers(convnet, nn.Conv2d)]
    assert shapes == [(4, 3), (4, 4), (8, 4), (8, 8), (12, 8), (12, 12)]
    default = [x.weight.shape[0] for x in layers(models.build("convnet", 3, 32, 10, 0), nn.Conv2d)]
    assert default == [16, 16, 64, 64, 64, 64]
    resnet9 = [x.weight.shape[0] for x in layers(models.build("resnet9:4-8-8-12", 3, 32, 10, 0), nn.Conv2d)]
    assert resnet9 == [4, 8, 8, 8, 8, 12, 12, 12]


def test_resnet18_is_the_papers():
    model = models.build("resnet18", 3, 32, 10, 0)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962  # ResNet-18 with CIFAR stem, 10 classes
    strides = {x.stride for x in layers(model, nn.Conv2d)[:1]}
    assert strides == {(1, 1)}


def test_weights_are_scaled_as_pytorch_scales_them():
    weight = layers(models.build("mlp:4096", 1, 8, 10, 0), nn.Linear)[0].weight  # uniform in ± 1 / sqrt(64)
    assert weight.abs().max().item() == pytest.approx(1 / 8, rel=1e-2)
    assert weight.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "channels", "words"),
    [
        ("perceptron", 1, "perceptron"),
        ("", 1, "not known"),
        ("mlp:a", 1, "'a'"),
        ("mlp:0", 1, "'0'"),
        ("mlp:-3", 1, "'-3'"),
        ("mlp:3.5", 1, r"'3\.5'"),
        ("convnet:1-2", 3, "1-2"),
        ("resnet9:1-2-3", 3, "1-2-3"),
        ("resnet18:64", 3, "resnet18:64"),
        ("torchvision:no_such_net", 3, "no_such_net"),
        ("torchvision:", 3, "torchvision"),
        ("torchvision:fasterrcnn_resnet50_fpn", 3, "fasterrcnn"),
        ("torchvision:mobilenet_v3_small", 1, "1"),
    ],
)
def test_a_wrong_name_raises_one_error(name, channels, words):
    with pytest.raises(ValueError, match=words):
        models.build(name, channels, 32, 10, 0)


@pytest.mark.parametrize(
    ("name", "size"), [("convnet:2-2-2", 4), ("convnet:2-2-2", 7), ("resnet9:2-2-2-2", 4), ("torchvision:alexnet", 32)]
)
def test_images_too_small_for_a_model_are_refused(name, size):
    with pytest.raises(ValueError, match=rf"model '{name}' .*{size} pixels \(image_size\)"):
        models.check(name, 3, size, 10)


@pytest.mark.parametrize(
    ("name", "size"),
    [("mlp", 1), ("convnet:2-2-2", 8), ("resnet9:2-2-2-2", 8), ("torchvision:mobilenet_v3_small", 32)],
)
def test_images_large_enough_pass(name, size):
    before = torch.get_rng_state()
    models.check(name, 3, size, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_and_convolutional_models_are_told_apart():
    kinds = {
        name: (models.is_random(model), models.is_convolutional(model))
        for name in ("mlp", "convnet", "torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x0_5")
        for model in [models.build(name, 3, 32, 10, 0)]
    }
    assert kinds == {
        "mlp": (False, False),
        "convnet": (False, True),
        "torchvision:mobilenet_v3_small": (True, True),  # dropout 0.2
        "torchvision:shufflenet_v2_x0_5": (False, True),
    }


def test_inside_seeded_random_operations_follow_its_generator():
    def draws() -> list[torch.Tensor]:
        x = torch.ones(200)
        return [
            torch.rand(5),
            torch.randn(5),
            torch.randperm(9),
            torch.empty(5).uniform_(),
            torch.empty(5).normal_(),
            nn.functional.dropout(x, 0.3),
            nn.init.trunc_normal_(torch.empty(5)),
            torch.bernoulli(torch.full((9,), 0.5)),
        ]

    before = torch.get_rng_state()
    runs = []
    for seed in (0, 0, 1):
        with models.Seeded(torch.Generator().manual_seed(seed)):
            runs.append(draws())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    kept = runs[0][5] != 0  # dropout keeps 7 of 10, scaled up
    assert 110 < int(kept.sum()) < 170
    torch.testing.assert_close(runs[0][5][kept], torch.full((int(kept.sum()),), 1 / 0.7))


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_the_fused_dropout_of_cuda_is_drawn_from_the_generator_too(p):
    x = torch.full((4000,), 2.0)
    outs = []
    for seed in (0, 0, 1):
        with models.Seeded(torch.Generator().manual_seed(seed)):
            out, mask = torch.ops.aten.native_dropout(x, p, True)
        torch.testing.assert_close(out, torch.where(mask, 2 / (1 - p) if p < 1 else 0.0, 0.0))
        assert mask.float().mean().item() == pytest.approx(1 - p, abs=0.04)
        outs.append(out)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2]) == (p in (0.0, 1.0))
    with models.Seeded(torch.Generator().manual_seed(0)):
        assert torch.equal(torch.ops.aten.native_dropout(x, p, False)[0], x)
