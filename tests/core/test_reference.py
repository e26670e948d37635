"""A number from outside for each sample: who sees it, and that what it took is charged before the first step."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agents import make, needs_reference
from prune_env import PruneEnv, Pruner, select
from prune_env.io import write_columns
from tests.helpers.runs import digits, play, same

FLOPS = 2 * (64 * 64 + 64 * 10)  # of a digit through `mlp`: 64 pixels, 64 hidden, 10 classes


def reference(folder: Path, epochs: float = 0.0, n: int = 100) -> str:
    """A file with the square root of each image's number, which took so many epochs of n samples."""
    numbers = np.arange(1300)
    columns = {"index": numbers, "score": np.sqrt(numbers), "flops": np.full(1300, epochs * 3 * n * FLOPS / 1300)}
    write_columns(folder / "reference.csv", columns)
    return str(folder / "reference.csv")


def test_it_is_observed_where_it_is_given_and_changes_nothing_else(tmp_path):
    env, bare = digits(reference=reference(tmp_path)), digits()
    traces = play(env, seed=1), play(bare, seed=1)
    assert "reference" not in bare.observation_space.spaces  # pyright: ignore[reportAttributeAccessIssue]
    for (seen, *rest), (other, *others) in zip(*traces, strict=True):
        assert seen in env.observation_space
        score = seen.pop("reference")
        assert score.dtype == np.float32
        np.testing.assert_allclose(score, np.sqrt(env.train_data.source.numpy()), rtol=1e-6)
        assert same([seen, *rest], [other, *others])


def test_what_it_took_is_charged_once_and_the_rest_is_a_whole_schedule(tmp_path):
    env = digits(reference=reference(tmp_path, epochs=1.25), budget=4.0)
    alone = digits(budget=2.75)
    seen, info = env.reset(seed=0)
    alone.reset(seed=0)
    assert (info["spent"], info["total_spent"]) == (0.0, 1.25)
    assert seen["spent"][0] == np.float32(1.25 / 4)
    assert seen["budget"][0] == 4.0
    done, everything = False, select(np.ones(100))
    for step in range(1, 4):
        seen, reward, done, _, info = env.step(everything)
        other, other_reward, *_, expected = alone.step(everything)
        assert info["total_spent"] == pytest.approx(min(4.0, 1.25 + step))
        assert {**info, "total_spent": 0} == {**expected, "total_spent": 0}  # the same rates, so the same accuracies
        assert reward == pytest.approx(other_reward * 2.75 / 4)
        np.testing.assert_array_equal(seen["loss"], other["loss"])
        assert seen["age"].max() == pytest.approx(other["age"].max(), abs=1e-6)
    assert done
    assert seen["spent"][0] == 1.0
    assert env.trainer is not None
    assert env.trainer.ledger.reference == 375  # forward passes


def test_a_larger_student_is_charged_fewer_of_its_passes(tmp_path):
    env = digits(reference=reference(tmp_path, epochs=1.0), model="mlp:128")
    env.reset(seed=0)
    assert env.trainer is not None
    assert env.trainer.ledger.reference == round(300 * FLOPS / (2 * (64 * 128 + 128 * 10)))


def test_a_budget_that_it_leaves_no_batch_of_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"budget is 3.0, 0 of 100 samples once the reference is charged 3.5; it must"):
        digits(reference=reference(tmp_path, epochs=3.5))


def test_a_state_holds_the_charge(tmp_path):
    env, twin = (digits(reference=reference(tmp_path, epochs=1.0)) for _ in range(2))
    env.reset(seed=0)
    env.step(select(np.ones(100)))
    assert same(twin.load_state_dict(env.state_dict()), env.load_state_dict(env.state_dict()))
    assert same(env.step(select(np.ones(100))), twin.step(select(np.ones(100))))


def test_a_state_is_of_a_run_with_the_same_reference(tmp_path):
    env = digits(reference=reference(tmp_path, epochs=1.0))
    env.reset(seed=0)
    cheaper = digits(reference=reference(tmp_path, epochs=0.5))
    for other in (cheaper, digits()):
        with pytest.raises(ValueError, match="the state is of a run with reference="):
            other.load_state_dict(env.state_dict())


@pytest.mark.parametrize("cost", ["-1", "nan", "inf", "", "x"])
def test_a_cost_that_is_no_number_of_at_least_0_is_named(cost, tmp_path):
    file = tmp_path / "own.csv"
    lines = [f"{row},1,{cost if row == 7 else 0}" for row in range(1300)]
    file.write_text("\n".join(["index,score,flops", *lines]))
    with pytest.raises(ValueError, match=f"own.csv, column flops: '{cost}' must be a number between 0 and 1e\\+30"):
        digits(reference=str(file))


def test_members_of_a_vector_env_without_one_observe_zeros(tmp_path):
    file = reference(tmp_path)
    small: dict[str, Any] = {"train_size": 50, "budget": 1.0, "model": "mlp:4"}
    env = gym.make_vec("prune_env/Digits-v0", num_envs=2, reference=[file, None], **small)
    seen, _ = env.reset(seed=0)
    assert seen in env.observation_space
    assert seen["reference"][0].all()
    assert not seen["reference"][1].any()
    bare = gym.make_vec("prune_env/Digits-v0", num_envs=2, **small)
    with pytest.raises(ValueError, match="the task of member 0 has references 1; the spaces have room for 0"):
        bare.reset(options={"task": {"reference": file}})


def test_a_summary_leaves_it_out(tmp_path):
    given, bare = (gym.make("prune_env/DigitsSummary-v0", reference=r) for r in (reference(tmp_path), None))
    np.testing.assert_array_equal(given.reset(seed=0)[0], bare.reset(seed=0)[0])


def test_a_pruner_shows_an_array_to_its_agent():
    seen: list[dict] = []
    labels = np.arange(20) % 2

    def agent(observation, rng):
        seen.append(observation)
        return select(np.ones(20))

    pruner = Pruner(agent, labels, 2.0, batch_size=5, reference=labels * 0.5)
    pruner.begin_epoch()
    np.testing.assert_array_equal(seen[0]["reference"], labels * np.float32(0.5))
    Pruner(make("rho_loss"), labels, 2.0, batch_size=5, reference=labels).begin_epoch()
    for wrong, words in (
        (np.ones(19), r"reference has shape \(19,\); it must be \(20,\) finite numbers"),
        (np.where(np.arange(20) == 3, np.nan, 1), r"reference\[3\] is nan; it must be a finite number"),
    ):
        with pytest.raises(ValueError, match=words):
            Pruner(agent, labels, 2.0, batch_size=5, reference=wrong)


def test_who_needs_one_says_so():
    asking = [
        "rho_loss",
        "rho_loss:keep=0.2+anneal=0.1",
        "same_amounts:rho_loss",
        make("rho_loss"),
        make("rho_loss+mixup=0.5"),
        make("same_amounts:rho_loss+anneal=0.1"),
        type(make("rho_loss")),
    ]
    assert all(map(needs_reference, asking))
    assert not any(map(needs_reference, ["full", "same_amounts:ucb+mixup=0.5", make("ucb"), PruneEnv]))
    with pytest.raises(ValueError, match="rho_loss needs a reference"):
        make("rho_loss")(digits().reset(seed=0)[0], np.random.default_rng(0))
