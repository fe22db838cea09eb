"""Serial sections in one stack: ``sections`` opened, ``pairs`` registered, ``posegraph``, ``judge``, ``align``.

``settle`` finds the last fraction of a pixel between two neighbours.
"""
