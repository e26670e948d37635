"""Pictures of training samples, for a report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import gymnasium as gym
import torch
from PIL import Image
from torch import Tensor

from agents import split_switches
from prune_env import data
from prune_env.data import Data
from train.analysis.records import Record
from train.execution.plan import TASK

CHOOSING = ("ucb", "swdpp", "epsilon_greedy", "middle")  # by statistics: their pictures say most
RANDOM = ("full", "random", "static_random")
PICTURED = 3  # agents with pictures, at most
PIXELS = 64  # of a picture's longer side; larger ones are made smaller


def training_data(record: Record, root: str | None) -> tuple[Data | None, str]:
    """Return what a run trained on, or None and why; without `root` only what may be passed on with the package."""
    configuration = record["configuration"]
    try:
        settings = {**gym.spec(configuration["env"]).kwargs, **configuration["settings"]}
        if root is None and settings["dataset"] != "digits":  # they come with the package
            return None, "--root, the folder with the images, was not given."
        train, _ = data.load(
            settings["dataset"], root=root, **{name: settings[name] for name in TASK if name in settings}
        )
    except FileNotFoundError:
        return None, "the images were not found; --root says where they are."
    except (ValueError, TypeError, KeyError, OSError, gym.error.Error) as error:
        return None, f"the images could not be read ({' '.join(str(error).split())}); --root says where they are."
    if train.digest != configuration["data"]["train"]:
        return None, "the images there are not those of the runs: their digest is another."
    return train, ""


def pictured(agents: Sequence[str]) -> list[str]:
    """Return those of `agents` whose pictures say most: rules that choose by statistics, without switches."""
    names = {agent: agent.partition(":")[0] for agent in agents if not split_switches(agent)[1]}
    chosen = [next((agent for agent in names if names[agent] == name), "") for name in CHOOSING]
    others = [agent for agent in names if names[agent] not in (*CHOOSING, *RANDOM)]
    return [*filter(None, chosen), *others][:PICTURED]


class Thumbnail(NamedTuple):
    """A training sample: its picture, its class in words, and the share of the steps in which it was kept."""

    sample: int
    png: bytes
    text: str
    wrong: bool
    share: float


def thumbnail(train: Data, index: int, share: float) -> Thumbnail:
    """Return a training sample with its picture, as PNG; `share` is that of the steps in which it was kept."""
    wrong = bool(train.wrong[index])
    text = train.classes[int(train.labels[index])] + (", wrong" if wrong else "")
    return Thumbnail(index, picture(train.batch(torch.tensor([index]))[0][0]), text, wrong, share)


def picture(pixels: Tensor) -> bytes:
    """Return a PNG of (C, H, W) uint8, grey or coloured, pixel by pixel if it is not larger than PIXELS."""
    values = pixels.cpu().numpy()
    picture = Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0))
    picture.thumbnail((PIXELS, PIXELS))
    png = io.BytesIO()
    picture.save(png, "png")
    return png.getvalue()
