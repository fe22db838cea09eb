"""Writes a ``.tar.gz`` again with its entries in order of name, one date, no owner: ``sorted_tar.py FROM TO``.

The date is that of ``SOURCE_DATE_EPOCH``: two sdists of one commit have equal bytes.
"""

import gzip
import os
import sys
import tarfile
from pathlib import Path


def rewrite(source: Path, target: Path) -> None:
    """Write ``source`` as ``target``: equal entries give equal bytes."""
    date = int(os.environ.get("SOURCE_DATE_EPOCH", "315532800"))
    with (
        tarfile.open(source, "r:gz") as old,
        target.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=date) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for entry in sorted(old.getmembers(), key=lambda member: member.name):
            if not (entry.isfile() or entry.isdir()):
                raise ValueError(f"wanted files and folders in {source.name}, got {entry.name}, a link or device")
            plain = tarfile.TarInfo(entry.name)
            plain.type, plain.size, plain.mtime = entry.type, entry.size, date
            plain.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            new.addfile(plain, old.extractfile(entry) if entry.isfile() else None)


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]), Path(sys.argv[2]))
