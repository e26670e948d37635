"""Distilling: teachers chosen by hand-counted gains, tasks between kinds of trouble, a planted map that is found."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import agents
from agents.rules import Rule
from prune_env.policy.features import FEATURES
from prune_env.policy.learned import Network
from prune_env.policy.rules import FULL, RULE_PARAMETERS
from prune_env.policy.tasks import Task
from tests.learning.here import VARIED, Here
from train import distil

BALANCED, EASY, RANDOM = "rule:keep=0.5,balance=1", "rule:keep=0.7,loss=-0.5", "rule:keep=0.5,randomness=1"
GAINS = {  # over full in points, of two seeds
    ("clean", ()): {BALANCED: (-1.0, -2.0), RANDOM: (0.1, -0.3)},
    ("noise", (("label_noise", 0.2),)): {EASY: (2.0, 3.0), RANDOM: (5.0, -5.0)},
    ("unlike", (("imbalance", 10.0),)): {BALANCED: (4.0, 6.0), RANDOM: (1.0, 1.0)},
}

TWO_TASKS = (  # one to validate on
    "validations = 1\nheld_outs = 0\n[values]\ntrain_size = [60]\nval_rest = [true]\nmodel = ['mlp:4']\n"
    "budget = [2.0]\nlabel_noise = [0.0, 0.2]\nimage_size = [3]\n"
)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of two tasks, which are played in this process."""
    monkeypatch.setattr(distil, "Workers", Here)
    monkeypatch.setattr(Here, "played", [], raising=False)
    path = tmp_path / "tasks.toml"
    path.write_text(TWO_TASKS)
    return path


def numbers_of(spec: str) -> np.ndarray:
    rule = agents.make(spec)
    assert isinstance(rule, Rule)
    return rule.numbers


def write(folder: Path, gains: dict, env: str = "prune_env/ImageFolder-v0") -> Path:
    """Records of runs whose `full` differs by the seed, by which no gain does."""
    lines = []
    for (task, settings), its in gains.items():
        for agent, points in {"full": (0.0, 0.0), "swdpp": (9.0, 9.0), **its}.items():
            for seed, gain in enumerate(points):
                results = {"val_accuracy": 0.5 + 0.1 * seed + gain / 100}
                record = {"key": str(len(lines)), "task": task, "agent": agent, "seed": seed, "budget": 8.0}
                record |= {"configuration": {"env": env, "settings": dict(settings)}, "results": results}
                lines.append(json.dumps(record))
    folder.mkdir()
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_teachers_are_the_rules_that_gain_most_less_an_error(tmp_path):
    teachers, lines = distil.teachers_of([write(tmp_path / "a", GAINS)])
    of = {kind: vars(rule) for kind, rule in teachers.items()}
    assert of[False, 0.0, 0.0, 0.0] == vars(agents.make("rule:keep=1.0"))  # no rule gains on clean labels
    assert of[False, 1.0, 0.0, 0.0] == vars(agents.make(EASY))
    assert of[False, 0.0, 1.0, 0.0] == vars(agents.make(BALANCED))
    variances = [0.5, 0.08, 0.5, 50.0, 2.0, 0.0]  # of two values: half the square of their difference
    assert lines[-1]["deviation_of_a_run"] == pytest.approx(np.sqrt(np.mean(variances)))
    # 2.5 less 2.98 / sqrt(2) is above 0; of gains a third as large it is not
    smaller = {**GAINS, ("noise", (("label_noise", 0.2),)): {EASY: (0.7, 1.0), RANDOM: (5.0, -5.0)}}
    assert vars(distil.teachers_of([write(tmp_path / "b", smaller)])[0][False, 1.0, 0.0, 0.0])["keep"] == 1.0


def test_several_folders_count_alike_and_seeds_stay_with_their_own_full(tmp_path):
    other = {kind: {spec: (gain - 4, more - 4) for spec, (gain, more) in its.items()} for kind, its in GAINS.items()}
    both = [write(tmp_path / "a", GAINS), write(tmp_path / "b", other)]
    found = {(line["trouble"][1], line["rule"]): line for line in distil.teachers_of(both)[1] if "rule" in line}
    assert found[1.0, EASY] | {"gain": 0} == {"trouble": (False, 1.0, 0.0, 0.0), "rule": EASY, "gain": 0, "runs": 4}
    assert found[1.0, EASY]["gain"] == pytest.approx(0.5)


def test_a_task_on_a_kind_has_its_rule_and_one_between_two_has_their_mean(tmp_path):
    teachers, _ = distil.teachers_of([write(tmp_path / "a", GAINS)])
    easy, full = numbers_of(EASY), FULL
    on = distil.taught(teachers, Task(dataset="imagefolder", label_noise=0.2))
    assert on == pytest.approx(easy, abs=1e-6)
    between = distil.taught(teachers, Task(dataset="imagefolder", label_noise=0.1))
    unlike = np.array(1.25**-2)  # distance² to the third kind is 0.25 + 1; to the two around it 0.25
    weights = np.array([0.25**-2, 0.25**-2, unlike])
    rows = np.array([full, easy, numbers_of(BALANCED)])
    assert between == pytest.approx(weights @ rows / weights.sum())


def test_digits_have_teachers_of_their_own_where_there_are_some(tmp_path):
    own = write(tmp_path / "b", {("noise", (("label_noise", 0.2),)): {RANDOM: (3.0, 3.1)}}, "prune_env/Digits-v0")
    teachers, _ = distil.teachers_of([write(tmp_path / "a", GAINS), own])
    expected = numbers_of(RANDOM)
    assert distil.taught(teachers, Task(label_noise=0.4)) == pytest.approx(expected)


def test_a_fit_finds_a_planted_map(monkeypatch):
    monkeypatch.setattr(distil, "STEPS", 500)
    rng = np.random.default_rng(0)
    features = rng.uniform(-1.0, 1.0, (4000, len(FEATURES))).astype(np.float32)
    features[:, 3] = 0.2  # does not vary: it must not be read
    numbers = np.zeros((4000, len(RULE_PARAMETERS)))
    numbers[:, 0], numbers[:, 5] = 0.8 * features[:, 7], 0.7 * np.tanh(2.0 * features[:, 9])
    policy = distil.fit(features, numbers, seed=0)
    errors = np.abs(policy(features) - numbers).mean(axis=0)
    assert errors.max() < 0.15
    assert np.abs(numbers).mean(axis=0)[[0, 5]].min() > 0.35
    moved = features.copy()
    moved[:, 3] = 1.0
    assert policy(moved) == pytest.approx(policy(features))


def test_what_cannot_be_seen_is_answered_as_most_runs_are(monkeypatch):
    monkeypatch.setattr(distil, "STEPS", 500)
    features = np.random.default_rng(0).uniform(-1.0, 1.0, (3000, len(FEATURES))).astype(np.float32)
    numbers = np.zeros((3000, len(RULE_PARAMETERS)))
    numbers[::3] = 0.9  # of a third of the runs, whatever is seen: the mean of all is 0.3
    assert np.abs(distil.fit(features, numbers, seed=0)(features)).mean() < 0.1


def test_a_policy_can_teach_on_digits(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "STEPS", 300)
    answers = np.linspace(-0.6, 0.5, len(RULE_PARAMETERS))
    one = Network(((np.zeros((len(answers), len(FEATURES))), answers),), "tanh", "clip", {})
    one.save(tmp_path / "digits.npz")
    arguments = [str(write(tmp_path / "a", GAINS)), "--tasks", str(tasks), "--out", str(tmp_path / "out")]
    arguments += ["--digits-policy", str(tmp_path / "digits.npz")]
    assert distil.main([*arguments, "--rounds", "1", "--episodes", "4", "--processes", "1"]) == 0
    features = distil.read_steps(tmp_path / "out")[1]
    made = Network.load(tmp_path / "out" / "policy.npz")(features)
    assert made == pytest.approx(np.tile(answers, (len(features), 1)), abs=0.1)


def test_clean_digits_and_images_stay_with_the_rules():
    plain = Task(train_size=60)
    troubled = [replace(plain, label_noise=0.2), replace(plain, imbalance=3.0)]
    assert all(map(distil.of_the_policy, troubled))
    others = [plain, replace(plain, duplicates=0.3), *(replace(task, dataset="imagefolder") for task in troubled)]
    assert not any(map(distil.of_the_policy, others))


def test_steps_of_validation_tasks_are_not_learned_from(tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distil, "STEPS", 20)
    found = distil.distribution(str(tasks))
    played = [found.validation[0]] * 30 + [found.training[0]] * 12
    distil.write_steps(tmp_path / "out", played, np.zeros((42, len(FEATURES)), np.float32))
    arguments = [str(write(tmp_path / "a", GAINS)), "--tasks", str(tasks), "--also", str(tmp_path / "out")]
    one = Network(((np.zeros((len(RULE_PARAMETERS), len(FEATURES))), np.zeros(12)),), "tanh", "clip", {})
    replace(one, card={"training": {"seconds": 5.0}}).save(tmp_path / "out" / "policy.npz")
    assert distil.main([*arguments, "--rounds", "0", "--processes", "1", "--out", str(tmp_path / "b")]) == 0
    assert "12 steps" in capsys.readouterr().out


def test_what_is_watched_are_the_steps_of_each_pair():
    pairs = [(replace(VARIED.training[0], budget=budget), 3) for budget in (2.0, 1.0, 2.0)]
    rules = np.tile(FULL, (3, 1))
    of, features = Here(VARIED, 2).watch(pairs, rules)
    spent = FEATURES.index("spent")
    for i, (task, _) in enumerate(pairs):
        assert features[of == i, spent] == pytest.approx(2 * np.arange(task.budget) / task.budget - 1, abs=1e-6)


def test_the_program_leaves_a_policy_with_a_card(tasks, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distil, "STEPS", 20)
    arguments = [str(write(tmp_path / "a", GAINS)), "--tasks", str(tasks), "--out", str(tmp_path / "out")]
    assert distil.main([*arguments, "--rounds", "2", "--episodes", "4", "--processes", "1"]) == 0
    card = Network.load(tmp_path / "out" / "policy.npz").card
    chosen = f"clean: rule:keep=1.0; 20 % wrong labels: {EASY}; classes 10:1: {BALANCED}"
    assert (card["teachers"], card["training"]["searched"], card["training"]["episodes"]) == (chosen, 12, 8)
    shown = capsys.readouterr().out
    assert "Points over full training in validation" in shown
    assert "20 % wrong labels" in shown
    again = [*arguments[:4], str(tmp_path / "more"), "--also", str(tmp_path / "out"), "--rounds", "0"]
    assert distil.main(again) == 0  # the same steps and seeds
    one, other = (Network.load(tmp_path / name / "policy.npz").layers for name in ("out", "more"))
    assert all(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    assert Network.load(tmp_path / "more" / "policy.npz").card["training"]["seconds"] > card["training"]["seconds"]
    assert distil.main([*arguments, "--rounds", "0"]) == 2
    assert distil.main([str(tmp_path), "--tasks", str(tasks)]) == 2
    assert "has no results" in capsys.readouterr().err
    for wrong in (["--processes", "0"], ["--episodes", "0"], ["--rounds", "-1"]):
        assert distil.main([*arguments, *wrong]) == 2
        assert wrong[0] in capsys.readouterr().err
    tasks.write_text(tasks.read_text().replace("validations = 1", "validations = 0"))
    assert distil.main(arguments) == 2
    assert "has no validation tasks" in capsys.readouterr().err


def test_the_table_of_the_docs_is_of_the_committed_runs():
    root = Path(__file__).parents[2]
    found = []
    for name in ("cifar10", "tiny"):
        lines = distil.teachers_of([root / "results" / "teachers" / name])[1]
        found.append({(distil._words(x["trouble"]), x["rule"]): f"{x['gain']:+.1f}" for x in lines if "rule" in x})
    page = (root / "docs" / "learning.md").read_text().split("### Which rules win with which trouble")[1]
    rows = [line.strip("|").split("|") for line in page.split("\n\n- ")[0].splitlines() if "`" in line and "|" in line]
    assert len(rows) > 20
    for trouble, rule, *gains in ([cell.strip() for cell in row] for row in rows):
        assert gains == [of.get((trouble, f"rule:{rule.strip('`')}"), "") for of in found]
