"""Every student builds, from its own seed, with the shapes that its name says."""

import numpy as np
import pytest
import torch
from torch import nn

from prune_env.students import models

OWN = ["mlp:32-16", "convnet:4-8-12", "resnet9:4-8-8-12", "resnet18"]
TORCHVISION = ["torchvision:mobilenet_v3_small", "torchvision:googlenet"]  # with dropout; with auxiliary outputs


@pytest.mark.parametrize("name", [*OWN, *TORCHVISION])
def test_every_name_builds_from_its_seed_alone(name):
    before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    model, same, other = (models.build(name, 3, 32, 7, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_equal(np.random.get_state(), before[1])  # noqa: NPY002
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        out = model.train(mode)(images)
        assert out.shape == (2, 7)
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", OWN)
def test_own_models_take_one_channel_and_small_images(name):
    assert models.build(name, 1, 8, 2, seed=0).eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 2)


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
    assert layers(model, nn.Conv2d)[0].stride == (1, 1)


def test_weights_are_scaled_as_pytorch_scales_them():
    weight = layers(models.build("mlp:4096", 1, 8, 10, 0), nn.Linear)[0].weight  # uniform in ± 1 / sqrt(64)
    assert weight.abs().max().item() == pytest.approx(1 / 8, rel=1e-2)
    assert weight.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "channels", "words"),
    [
        ("perceptron", 1, "perceptron"),
        ("mlp:a", 1, "'a'"),
        ("mlp:0", 1, "'0'"),
        ("mlp:3.5", 1, r"'3\.5'"),
        ("convnet:1-2", 3, "1-2"),
        ("resnet18:64", 3, "resnet18:64"),
        ("torchvision:no_such_net", 3, "no_such_net"),
        ("torchvision:fasterrcnn_resnet50_fpn", 3, "fasterrcnn"),
        ("torchvision:mobilenet_v3_small", 1, "1"),
    ],
)
def test_a_wrong_name_raises_one_error(name, channels, words):
    with pytest.raises(ValueError, match=words):
        models.build(name, channels, 32, 10, 0)


@pytest.mark.parametrize(
    ("name", "smallest"), [("mlp", 1), ("convnet:2-2-2", 8), ("resnet9:2-2-2-2", 8), ("torchvision:squeezenet1_1", 17)]
)
def test_images_too_small_for_a_model_are_refused(name, smallest):
    before = torch.get_rng_state()
    models.check(name, 3, smallest, 2)
    if smallest > 1:
        with pytest.raises(ValueError, match=rf"model '{name}' .*{smallest - 1} pixels \(image_size\)"):
            models.check(name, 3, smallest - 1, 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "random", "convolutional"),
    [
        ("mlp", False, False),
        ("convnet", False, True),
        ("torchvision:mobilenet_v3_small", True, True),  # dropout 0.2
        ("torchvision:shufflenet_v2_x0_5", False, True),
    ],
)
def test_random_and_convolutional_models_are_told_apart(name, random, convolutional):
    before = torch.get_rng_state()
    assert models.check(name, 3, 32, 10) == (random, convolutional, "")
    assert torch.equal(torch.get_rng_state(), before)


def test_inside_seeded_random_operations_follow_its_generator():
    def draws() -> list[torch.Tensor]:
        return [
            nn.functional.dropout(torch.ones(200), 0.3),
            torch.rand(5),
            torch.randn(5),
            torch.randperm(9),
            torch.empty(5).normal_(),
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
    kept = runs[0][0][runs[0][0] != 0]  # dropout keeps 7 of 10, scaled up
    assert 110 < len(kept) < 170
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.7))


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
