"""Files and stores that are not on this disk: addresses, byte ranges, and Zarr stores made of them.

``address`` reads and writes objects of ``s3://``, ``gs://`` and ``https://`` stores, with ``credentials`` from the environment
and the usual files; ``errors`` is what goes wrong with them. ``ranged`` is an object as a file that is read block by block,
``zarrstore`` what lies below an address as a Zarr store, and ``held`` keeps chunks that were read.
"""
