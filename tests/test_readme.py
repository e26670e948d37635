"""The README's Python runs, block after block, in one namespace."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.M | re.S)


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    text = README.read_text()
    blocks = list(BLOCK.finditer(text))
    assert blocks, "the README shows no Python"
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "readme"}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        code = compile("\n" * line + block[1], str(README), "exec")  # so that an error names the README's line
        exec(code, namespace)
