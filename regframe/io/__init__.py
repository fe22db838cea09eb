"""Files of regframe's own: the ``store`` of a result, the folder of ``outputs`` of a run, ``tables`` of points, ``shapes``.

``text`` divides the text of a table into cells, whatever program wrote it; ``paths`` are file names of any bytes. The store is
a Zarr folder of checked ``nodes``; ``scene`` is the part of it that OME-Zarr defines, ``graph`` finds the way through a scene
of another program, ``fields`` turns a map into the matrices and displacement fields there.
"""
