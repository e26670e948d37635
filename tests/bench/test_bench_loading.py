"""The program runs, and its table has a row for each source and share."""

import multiprocessing

import torch

from prune_env.data import residence
from tests.helpers import trees
from train.bench import loading as bench_loading

# what workers are forked from: torch is imported there once, and not in each of them
multiprocessing.set_forkserver_preload(["prune_env.data.workers", "train.execution.program"])


def test_the_program_runs(tmp_path, monkeypatch, capsys, one_thread):
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(residence, "cores", lambda: 1)
    trees.imagefolder(tmp_path / "tree", per_class=30, size=16)
    args = bench_loading.Args(str(tmp_path / "tree"), 50, 16, "mlp:8", (1.0, 0.3), rounds=2, device="cpu")
    bench_loading.main(args)
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line] for line in lines]
    assert [row[:2] for row in rows] == [
        [kind, keep] for keep in ("100%", "30%") for kind in ("host", "mapped", "files")
    ]
    assert all(float(cell) >= 0 for row in rows for cell in row[2:6])
    assert torch.get_num_threads() == 1
