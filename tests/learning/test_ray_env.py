"""`train.learn --engine ray`: actors do what processes do. Skipped where Ray is not installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.learning.here import VARIED
from tests.learning.test_rollouts import check_workers
from train import learn

pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # a cluster of its own


def test_actors_do_what_this_process_does():
    from train.learning import ray_env

    with ray_env.cluster(SimpleNamespace(address=None, processes=2)):
        workers = ray_env.RayWorkers(VARIED, 2)
        check_workers(workers)
        workers.close()


def test_no_cluster_is_said_in_one_line(tmp_path: Path, capsys, monkeypatch):
    import ray

    def refused(*_, **__):
        raise ConnectionError("refused")

    monkeypatch.setattr(ray, "init", refused)  # its own attempts take minutes
    options = ["--engine", "ray", "--address", "127.0.0.1:1", "--members", "2", "--processes", "2"]
    assert learn.main([*options, "--steps", "1", "--out", str(tmp_path)]) == 2
    assert "error: no Ray cluster at --address 127.0.0.1:1: refused" in capsys.readouterr().err
