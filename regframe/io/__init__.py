"""Files of regframe's own: the ``store`` of a result, the folder of ``outputs`` of a run, ``tables`` of points, ``shapes``.

``text`` divides the text of a table into cells, whatever program wrote it; ``paths`` are file names of any bytes. The store is
a Zarr folder of checked ``nodes``; ``scene`` is the part of it that OME-Zarr defines, ``graph`` finds the way through a scene
of another program, ``fields`` turns a map into the matrices and displacement fields there.

What is written lies in a hidden folder first (``claims``: whose each is, and what becomes of those of the dead), is found to be
``whole``, and gets its name in one step (``replacing``). ``inputs`` must stay as they are meanwhile; ``spreadsheet`` keeps text
in the cells of a table text. ``tasks`` are run here or by the workers of others, their answers kept. Landmarks of other
programs: ``bigwarp`` (with Warpy) in JSON, ``stalign`` in ``.npy``,
``imagej`` in ``.roi``.
"""
