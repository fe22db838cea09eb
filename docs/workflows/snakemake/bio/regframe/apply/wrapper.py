"""Snakemake wrapper for ``regframe apply``."""

__author__ = "the regframe contributors"
__license__ = "BSD-3-Clause"

import tempfile

from snakemake.shell import shell

extra = snakemake.params.get("extra", "")
log = snakemake.log_fmt_shell(stdout=True, stderr=True)

kind = snakemake.params.get("kind", "")
if kind not in ("image", "labels", "points", "shapes"):
    raise ValueError(f"wanted params.kind to be image, labels, points or shapes, got {kind!r}")
to = snakemake.params.get("to", "fixed")
command, ids = ("image", "--labels") if kind == "labels" else (kind, "")

with tempfile.TemporaryDirectory() as scratch:
    shell(
        "(export OMP_NUM_THREADS={snakemake.threads} MPLCONFIGDIR={scratch};"
        " regframe apply {command} {snakemake.input.result:q} {snakemake.input.data:q}"
        " -o {snakemake.output[0]:q} --to {to} --overwrite {ids} {extra}) {log}"
    )
