"""No image and no label of the test split can be reached from an environment."""

import gc
import sys
import types
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
import torch

import prune_env.data
from prune_env import PruneEnv, select

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


def test_rows() -> list[bytes]:
    """Every test image as it is held, as it lies in the file, and as numbers for a network; and the labels."""
    test = prune_env.data.load_test("digits")
    images = test.images.numpy()
    forms = [images, images // 15, images.astype(np.float32), images.astype(np.int64)]
    rows = [image.tobytes() for form in forms for image in form]
    labels = test.labels.numpy()  # of places that the training labels, in the official order, do not repeat
    return rows + [labels[at : at + 30].astype(kind).tobytes() for at in (100, 240) for kind in (np.int64, np.uint8)]


test_rows.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def leaks(*roots: object) -> int:
    memory = list(buffers(*roots))
    return sum(any(row in piece for piece in memory) for row in test_rows())


@pytest.fixture
def env() -> PruneEnv:
    env = gym.make("prune_env/Digits-v0", budget=2.0, render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(2):
        env.step(select(np.ones(len(env.unwrapped.train_data), bool), 0.1))  # pyright: ignore
    env.render()
    env.reset()
    env.step(select(np.ones(len(env.unwrapped.train_data), bool), 0.1))  # pyright: ignore
    assert isinstance(env.unwrapped, PruneEnv)
    return env.unwrapped


def test_no_test_image_is_reachable(env):
    assert leaks(env) == 0


def test_no_module_of_the_package_holds_one(env):
    modules = [vars(module) for name, module in sys.modules.items() if name.split(".")[0] == "prune_env"]
    assert len(modules) > 10
    assert leaks(*modules) == 0


def test_training_images_are_found_so_the_search_works(env):
    memory = list(buffers(env))
    for data in (env.train_data, env.val_data):
        for image in data.images.numpy()[::100]:
            assert any(image.tobytes() in piece for piece in memory)


@pytest.mark.parametrize(
    "way", ["tensor", "view", "array", "base", "closure", "dataclass", "labels", "method", "cache"]
)
def test_a_planted_test_image_is_found(env, way):
    test = prune_env.data.load_test("digits")
    one = test.images[7:8].clone()
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
    }[way]
    env.trainer.somewhere = planted
    assert leaks(env) > 0
