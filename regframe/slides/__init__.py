"""Images larger than memory: read level by level, warped tile by tile, refined at full resolution.

``reader`` makes an adapter of a slide format; ``levels`` chooses and reads a level of a pyramid; ``tiles`` computes one tile;
``warp`` carries a whole image, ``merged`` many into one, ``mosaicked`` fields into a mosaic, with ``job`` for running it on
other machines; ``refine`` improves a map at full resolution. ``place`` states where the pixels of an image lie; ``shards`` is
the interface of output formats, ``zarrshards`` and ``tifftiles`` are OME-Zarr and OME-TIFF, ``remoteshards`` is OME-Zarr in a
remote store, ``foreignshards`` the format of a plug-in; ``unfinished`` keeps the marks of an output until it is whole.
``windows`` and ``field`` are the measurements of a refinement and the field fitted to them, ``sweep`` the tiles of one round as
tasks; ``through`` finds the field of a few positions at once. A "shard" is the part of an output that is computed and written
as one task.
"""
