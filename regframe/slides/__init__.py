"""Images larger than memory: ``levels`` of a pyramid, ``tiles`` of a level, ``warp``, ``refine``.

``place`` says where pixels lie, ``job`` makes a shard a task, ``tifftiles`` writes pyramidal OME-TIFF; ``windows`` and ``field``
are what a refinement sees and what it adds.
"""
