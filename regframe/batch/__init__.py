"""A table of registrations ("jobs"), each run in a process of its own, one after another or on a Dask cluster.

`read_manifest` reads the table, `run_batch` does what is not done yet, `spread` puts the shards of one large output on the
same workers. ``manifest`` is the table, ``places`` what its cells name, ``work`` one job in its folder, ``forkserver``
starts its process, ``pools`` who does the work, ``run`` the whole, ``summary`` the page and the table at its end.
"""

from ..io.tasks import InTurn, Pool
from .manifest import Job, ManifestError, parse_size, read_manifest
from .pools import Cluster, Plan, machine, spread
from .run import JobEvent, run_batch
from .work import Limits, Outcome

__all__ = [
    "Cluster",
    "InTurn",
    "Job",
    "JobEvent",
    "Limits",
    "ManifestError",
    "Outcome",
    "Plan",
    "Pool",
    "machine",
    "parse_size",
    "read_manifest",
    "run_batch",
    "spread",
]
