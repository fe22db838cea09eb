"""Images larger than memory: ``levels`` of a pyramid, ``tiles`` of a level, ``warp``, ``refine``.

``place`` says where pixels lie, ``job`` makes a shard a task; ``shards`` is what an output format offers, ``zarrshards`` and
``tifftiles`` are OME-Zarr and OME-TIFF; ``windows`` and ``field`` are what a refinement sees and what it adds.
"""
