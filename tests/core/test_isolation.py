"""No image and no label of the test split can be reached from an environment."""

import gc
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import prune_env.data
from prune_env import PruneEnv, select
from tests.helpers.runs import digits, own_digits

CODE = (types.ModuleType, type, types.BuiltinFunctionType, types.CodeType, types.FrameType)


def buffers(*roots: object) -> Iterator[bytes]:
    """Bytes of every piece of memory that holds numbers, reachable from `roots`.

    Of functions only closures and defaults are followed, not the module they stand in: everything in the
    process can be reached through modules.
    """
    stack, seen = list(roots), set()
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, CODE):
            continue
        seen.add(id(thing))
        roots += (thing,)  # kept alive, so that no id comes twice
        if isinstance(thing, types.FunctionType):
            cells = [cell.cell_contents for cell in thing.__closure__ or ()]
            stack += [*cells, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
            continue
        if isinstance(thing, torch.Tensor):
            yield bytes(torch.empty(0, dtype=torch.uint8).set_(thing.untyped_storage()).numpy())
            stack += [thing.grad if thing.is_leaf else None, thing._base]
        elif isinstance(thing, np.ndarray):
            if thing.base is None:
                yield thing.tobytes()
            stack.append(thing.base)
        elif isinstance(thing, bytes | bytearray | memoryview):
            yield bytes(thing)
        stack += gc.get_referents(thing)


@pytest.fixture(scope="module")
def secrets() -> list[bytes]:
    """Some test images as they are held, as they lie in the file, and as numbers for a network; and labels."""
    test = prune_env.data.load_test("digits")
    images = test.images.numpy()[::5]
    forms = [images, images // 15, images.astype(np.float32), images.astype(np.int64)]
    rows = [image.tobytes() for form in forms for image in form]
    labels = test.labels.numpy()  # of places that the training labels, in the official order, do not repeat
    return rows + [labels[at : at + 30].astype(kind).tobytes() for at in (100, 240) for kind in (np.int64, np.uint8)]


def leaks(secrets: list[bytes], *roots: object) -> int:
    """Number of secrets that are found in memory."""
    memory = b"|".join(buffers(*roots))
    return sum(secret in memory for secret in secrets)


@pytest.fixture
def env() -> PruneEnv:
    env = digits(budget=2.0, train_size=None, render_mode="rgb_array")
    everything = select(np.ones(len(env.train_data), bool), 0.1)
    for steps in (2, 1):
        env.reset(seed=0)
        for _ in range(steps):
            env.step(everything)
        env.render()
    return env


def test_no_test_image_is_reachable(env, secrets):
    assert leaks(secrets, env) == 0
    modules = [vars(module) for name, module in sys.modules.items() if name.split(".")[0] == "prune_env"]
    assert len(modules) > 10
    assert leaks(secrets, *modules) == 0


def test_the_test_part_of_own_data_is_not_reachable(secrets):
    own = own_digits()
    env = PruneEnv(own, model="mlp:4", budget=1.5)
    env.reset(seed=0)
    env.step(select(np.ones(120)))
    assert leaks(secrets, env) == 0
    assert leaks(secrets, own) > 100


def test_training_images_are_found_so_the_search_works(env):
    images = [image.tobytes() for data in (env.train_data, env.val_data) for image in data.images.numpy()[::100]]
    assert leaks(images, env) == len(images)


def test_a_planted_test_image_is_found(env, secrets):
    test = prune_env.data.load_test("digits")
    one = test.images[5:6].clone()
    planted = {
        "tensor": [{"deep": (one,)}],
        "view": test.images[:0],  # an empty view on all of it
        "array": one.numpy().astype(np.float32),
        "base": test.images.numpy()[:1, :, ::2, ::2],
        "closure": lambda: one,
        "dataclass": test,
        "labels": test.labels.numpy().copy(),
        "method": test.batch,
        "cache": one.numpy().tobytes(),
    }
    for way, secret in planted.items():
        assert leaks(secrets, secret) > 0, way
    env.trainer.somewhere = one
    assert leaks(secrets, env) > 0
