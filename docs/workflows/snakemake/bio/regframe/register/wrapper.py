"""Snakemake wrapper for ``regframe register``."""

__author__ = "the regframe contributors"
__license__ = "BSD-3-Clause"

import shlex
import tempfile

from snakemake.shell import shell

extra = snakemake.params.get("extra", "")
log = snakemake.log_fmt_shell(stdout=True, stderr=True)

landmarks = snakemake.input.get("landmarks", "")
if landmarks:
    landmarks = f"--landmarks {shlex.quote(landmarks)}"

accept = snakemake.params.get("accept", "")
if accept not in ("", "fail"):
    raise ValueError(f"wanted accept='fail' or nothing, got {accept!r}")
# exit code 3 is a map with the verdict fail
otherwise = "|| [ $? -eq 3 ]" if accept else ""

with tempfile.TemporaryDirectory() as scratch:
    shell(
        "(export OMP_NUM_THREADS={snakemake.threads} MPLCONFIGDIR={scratch};"
        " regframe register {snakemake.input.fixed:q} {snakemake.input.moving:q}"
        " -o {snakemake.output[0]:q} --overwrite {landmarks} {extra} {otherwise}) {log}"
    )
