"""Make pictures of training samples, for a report."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import gymnasium as gym
import torch
from PIL import Image

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
        dataset = settings["dataset"]
        if root is None and dataset != "digits":  # they come with the package
            return None, "--root, the folder with the images, was not given."
        names = [name for name in TASK if name in settings and name != "reference"]
        train, _ = data.load(dataset, root=root, **{name: settings[name] for name in names})
    except FileNotFoundError:
        labels = configuration["settings"].get("labels")
        beside = f", and {labels} is looked for in the current folder" if labels else ""
        return None, f"the images were not found; --root says where they are{beside}."
    except (ValueError, OSError, gym.error.Error) as error:  # damaged images, or an id of another version
        return None, f"the images could not be read ({' '.join(str(error).split())}); --root says where they are."
    if train.digest != configuration["data"]["train"]:
        return None, "the images there are not those of the runs: their digest is another."
    return train, ""


def pictured(agents: Sequence[str]) -> list[str]:
    """Return the agents whose pictures say most: rules that choose by statistics, without switches."""
    names = {agent: agent.partition(":")[0] for agent in agents if not split_switches(agent)[1]}
    chosen = [next((agent for agent in names if names[agent] == name), "") for name in CHOOSING]
    others = [agent for agent in names if names[agent] not in (*CHOOSING, *RANDOM)]
    return [*filter(None, chosen), *others][:PICTURED]


def thumbnail(train: Data, index: int, share: float) -> dict[str, Any]:
    """Return a training sample: its picture as PNG, its class in words, and the share of the steps that kept it."""
    pixels = train.batch(torch.tensor([index]))[0][0].cpu().numpy()  # (C, H, W) uint8, grey or coloured
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    picture.thumbnail((PIXELS, PIXELS))
    png = BytesIO()
    picture.save(png, "png")
    wrong = bool(train.wrong[index])
    text = train.classes[int(train.labels[index])] + (", wrong" if wrong else "")
    return {"sample": index, "png": png.getvalue(), "text": text, "wrong": wrong, "share": share}
