"""Maps of positions and what they carry; nothing here knows a file, a fit or a modality.

``base`` says what a map is; ``affine``, ``flow``, ``displacement`` and ``sequence`` are the maps; ``bends`` takes one apart at
its bend; ``resample`` pulls images through them and ``edges`` carries ``shapes``; ``fields`` turns a bend into the
displacement fields that other programs read, ``known`` does so with maps of other kinds; ``plane`` lays a section into a
volume; ``homogeneous`` is the arithmetic of small matrices.
"""
