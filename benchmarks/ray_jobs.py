"""Jobs of the leaderboard on a Ray cluster: a local one, or one at an address."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from restoration_env.benchmarks.comparison import Measurement
from restoration_env.benchmarks.leaderboard import Job, Spread
from restoration_env.errors import InvalidArgument

_RETRIES = 3  # of a job whose worker died


@contextmanager
def ray_cluster(address: str = "local", workers: int | None = None) -> Iterator[Spread]:
    """A way to do jobs on a cluster, for `restoration_env.benchmarks.leaderboard.run`.

    Every worker computes with one thread, in the folder where this is called. Images and weights that the jobs name
    must be where the workers are, under the same paths. A job whose worker dies is done again elsewhere, at most three
    times; as only its result is kept, under the job's key, nothing is counted twice.

    Args:
        address: "local" starts a cluster on this machine and ends it afterwards; else as `ray.init` takes it.
        workers: jobs at once on a local cluster; None for one a core.

    Raises:
        InvalidArgument: without Ray, and for an address where no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise InvalidArgument("--ray", "used with the extra: pip install 'restoration-env[ray]'", "no ray") from None
    settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    try:
        if address == "local":
            ray.init(address="local", num_cpus=workers, **settings)
        else:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InvalidArgument("--ray", "'local' or the address of a cluster", f"{address}: {error}") from None

    def spread(jobs: Mapping[str, Job]) -> Iterator[tuple[str, Measurement]]:
        remote = ray.remote(max_retries=_RETRIES, num_cpus=1)(_measure)
        waiting = [remote.remote(key, job, os.getcwd()) for key, job in jobs.items()]
        while waiting:
            done, waiting = ray.wait(waiting)
            for one in done:
                yield ray.get(one)

    try:
        yield spread
    finally:
        ray.shutdown()


def _measure(key: str, job: Job, folder: str) -> tuple[str, Measurement]:
    import torch

    os.chdir(folder)  # relative paths mean what they mean to who asked
    torch.set_num_threads(1)
    return key, job.measure()
