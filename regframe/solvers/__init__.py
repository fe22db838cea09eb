"""One file or folder per kind of pair: ``images``, ``section`` (in a volume), ``points``, ``mixed`` (points and an image)."""
