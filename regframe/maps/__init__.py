"""Maps of positions, and the images, points and shapes that they carry; nothing here knows a file, a fit or a modality.

``base`` defines a map and its direction. The maps: ``affine``, ``flow`` (of a velocity), ``displacement``, ``sequence``
(several in a row), ``pieces`` (one per piece of a slide). ``bends`` splits a map into its affine parts and its bend.
``resample`` pulls images through maps and moves
points, ``backdrop`` says what lies beyond an image; ``edges`` carries ``shapes``. ``fields`` samples a bend as the
displacement fields that other programs read; ``known`` does this for maps of foreign kinds. ``gridlines`` draws a map as the
lines of a grid that it bends. ``plane`` treats a section as one plane of a volume; ``homogeneous`` is the arithmetic of small
matrices.
"""
