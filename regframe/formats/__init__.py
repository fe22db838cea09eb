"""Maps in the files of other programs, one file per format: ``itk``, ``ants``, ``nifti``, ``elastix``, ``npz``.

``steps`` turns a map into the matrices and fields that they hold, and back; ``exchange`` chooses the format.
"""
