"""Writes a zip again with its entries in order of name, one date and plain permissions: ``sorted_zip.py FROM TO``.

The date is that of ``SOURCE_DATE_EPOCH``. What is inside stays as it is, so that ``RECORD`` of a wheel keeps its hashes.
"""

import os
import sys
import time
import zipfile
from pathlib import Path


def rewrite(source: Path, target: Path) -> None:
    """Write ``source`` as ``target``: equal entries give equal bytes."""
    epoch = max(int(os.environ.get("SOURCE_DATE_EPOCH", "315532800")), 315532800)  # a zip knows no date before 1980
    date = time.gmtime(epoch)[:6]
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for name in sorted(old.namelist()):
            if name.endswith("/"):
                continue
            entry = zipfile.ZipInfo(name, date)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            executable = (old.getinfo(name).external_attr >> 16) & 0o100
            entry.external_attr = (0o100755 if executable else 0o100644) << 16
            new.writestr(entry, old.read(name))


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]), Path(sys.argv[2]))
