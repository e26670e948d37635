"""The scripts of docs/reinforcement-learning.md run with the algorithms it names; `learned` plays what they save."""

import re
from pathlib import Path

import pytest

from train.evaluate import main

DOCS = Path(__file__).parents[2] / "docs" / "reinforcement-learning.md"


# over 2 s: the scripts of the docs train PPO as they stand
@pytest.mark.parametrize(
    ("zipped", "changes"),
    [
        ("policy.zip", {}),
        ("choice.zip", {"n_steps=128": "n_steps=16, batch_size=16, n_epochs=1"}),
        pytest.param("policy.zip", {"A2C": "SAC"}, marks=pytest.mark.slow),
        pytest.param("choice.zip", {"PPO": "DQN", ", n_steps=128": ""}, marks=pytest.mark.slow),
        pytest.param(
            "policy.zip",
            {
                "stable_baselines3 import A2C": "sb3_contrib import RecurrentPPO",
                "A2C": "RecurrentPPO",
                "Mlp": "MlpLstm",
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_script_of_the_docs_trains_a_policy_that_plays(zipped, changes, tmp_path, monkeypatch, capsys):
    if "Mlp" in changes:
        pytest.importorskip("sb3_contrib")
    page = DOCS.read_text()
    (script,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if zipped in code)
    (command,) = (line for line in re.findall(r"prune-env evaluate (.*)", page) if f"learned:{zipped}" in line)
    for old, new in changes.items():
        assert old in script
        script = script.replace(old, new)
    script, shortened = re.subn(r"learn\(\d+_000\)", "learn(64)", script)
    assert shortened == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(script, zipped, "exec"), {"__name__": "__main__"})
    assert main([*command.split(), "--seeds", "1", "--budget", "1", "--out", str(tmp_path / "runs")]) == 0
    assert "learned" in capsys.readouterr().out
