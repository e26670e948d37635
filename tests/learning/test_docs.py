"""The scripts of docs/learning.md run, and `learned` plays what they save."""

import re
from pathlib import Path

import pytest

from train.evaluate import main

DOCS = Path(__file__).parents[2] / "docs" / "learning.md"


@pytest.mark.parametrize("spec", ["policy.zip,trust=True", "choice.zip,trust=True,agents="])
def test_a_script_of_the_docs_trains_a_policy_that_plays(spec, tmp_path, monkeypatch, capsys):
    name = spec.partition(",")[0]
    (script,) = (code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if name in code)
    (command,) = (line for line in re.findall(r"train\.evaluate (.*)", DOCS.read_text()) if f"learned:{spec}" in line)
    script, shortened = re.subn(r"learn\(\d+_000\)", "learn(64)", script)
    assert shortened == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(script, name, "exec"), {"__name__": "__main__"})
    assert main([*command.split(), "--seeds", "1", "--budget", "1", "--out", str(tmp_path / "runs")]) == 0
    assert "learned" in capsys.readouterr().out
