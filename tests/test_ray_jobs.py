"""The leaderboard on a Ray cluster: the same table, also if a worker is killed in the middle."""

import builtins
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from restoration_env.benchmarks.entries import Sources
from restoration_env.benchmarks.leaderboard import Job, Protocol, run
from restoration_env.benchmarks.ray_jobs import ray_cluster
from restoration_env.cli import main
from restoration_env.errors import InvalidArgument

PROTOCOL = Protocol(suites=("mild", "severe"), count=2, seeds=2, looks=False)
SOURCES = Sources(oracle="none")


@dataclass(frozen=True)
class Deadly(Job):
    """A job whose worker is killed the first time, in the middle of its work."""

    mark: str = ""

    def measure(self):
        done = super().measure()
        if not Path(self.mark).exists():
            Path(self.mark).write_text("killed")
            os.kill(os.getpid(), signal.SIGKILL)
        return done


def test_a_killed_worker_is_replaced_and_the_table_is_that_of_one_process(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    names = ["input", "drqn"]
    alone = run(names, PROTOCOL, SOURCES, tmp_path / "alone")
    mark, counted = tmp_path / "mark", []
    with ray_cluster("local", workers=1) as spread:

        def deadly(jobs):
            first, *others = jobs.items()
            killed = {first[0]: Deadly(**vars(first[1]), mark=str(mark))}
            for key, measured in spread({**killed, **dict(others)}):
                counted.append(key)
                yield key, measured

        together = run(names, PROTOCOL, SOURCES, tmp_path / "together", spread=deadly)
    assert mark.read_text() == "killed"
    assert len(counted) == len(set(counted)) == 8  # 2 entries, 2 suites, 2 seeds: each once
    assert together == alone


@pytest.mark.long
def test_a_cluster_that_runs_already_is_used_by_its_address(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    protocol = Protocol(suites=("mild",), count=2, looks=False)
    alone = run(["input"], protocol, SOURCES, tmp_path / "alone")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        with ray_cluster(cluster.address) as spread:
            assert run(["input"], protocol, SOURCES, tmp_path / "together", spread=spread) == alone
    finally:
        cluster.shutdown()


def test_an_address_that_is_none_is_refused():
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    with pytest.raises(InvalidArgument, match="--ray must be 'local' or the address of a cluster"), ray_cluster("none"):
        pass


def test_without_ray_a_message_says_how_to_get_it(monkeypatch, tmp_path, capsys):
    real = builtins.__import__

    def without(name, *rest):
        if name == "ray":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidArgument, match=r"pip install 'restoration-env\[ray\]'"), ray_cluster():
        pass
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["leaderboard", "run", "input", "--ray"])
    assert end.value.code == 2 and "restoration-env[ray]" in capsys.readouterr().err
