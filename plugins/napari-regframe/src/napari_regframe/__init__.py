"""regframe in napari: alignments opened, made and corrected among the layers of the viewer.

``places`` says where the pixels and vertices of a layer lie, and where a layer has to lie; ``lazy`` makes arrays whose pixels are
read or warped when they are looked at; ``reading`` opens a stored alignment, ``landmarks`` pairs of points; ``aligning`` makes an
alignment of two layers, ``carrying`` brings a layer to the other side; ``widgets`` are the two panels. Nothing but ``widgets``
imports Qt.
"""

__version__ = "0.1.0"
