"""A cohort on many nodes of a SLURM cluster: dask-jobqueue submits jobs that are workers, ``regframe batch`` gives them pairs.

    pip install 'regframe[batch]' dask-jobqueue
    python many_nodes.py jobs.csv -o out --queue normal --jobs 20

Run it where ``sbatch`` can be called, on a login node or in a small job of its own. Every node needs this environment and the
same files under the same paths. What a worker was doing when its time was up is done by another. A second call goes on where one
ended.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any


def resources(options: argparse.Namespace) -> dict[str, Any]:
    """What every submitted job asks for: one pair at a time for each core, with the same share of memory."""
    return {
        "queue": options.queue,
        "account": options.account,
        "cores": options.cores,
        "processes": options.cores,
        "memory": options.memory,
        "walltime": options.walltime,
        "job_script_prologue": ["export OMP_NUM_THREADS=1"],
        # leave in time, so that what runs is given to another worker and not killed with the job
        "worker_extra_args": ["--lifetime", options.lifetime, "--lifetime-stagger", "2m"],
    }


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", help="table of pairs, as regframe batch takes it")
    parser.add_argument("-o", "--out", required=True, help="folder to write, on a disk that all nodes see")
    parser.add_argument("--queue", help="partition")
    parser.add_argument("--account")
    parser.add_argument("--cores", type=int, default=8, help="of a job: so many pairs side by side")
    parser.add_argument("--memory", default="64GB", help="of a job")
    parser.add_argument("--walltime", default="04:00:00", help="of a job")
    parser.add_argument("--lifetime", default="225m", help="of a worker: somewhat less than the walltime")
    parser.add_argument("--jobs", type=int, default=10, help="at most so many jobs at once")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Start the cluster, run the batch on it, end the cluster; returns the batch's exit code."""
    from dask_jobqueue import SLURMCluster

    options = parsed(arguments)
    with SLURMCluster(**resources(options)) as cluster:
        cluster.adapt(maximum_jobs=options.jobs)
        command = ["regframe", "batch", options.manifest, "-o", options.out, "--scheduler", cluster.scheduler_address]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
