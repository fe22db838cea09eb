"""One file or folder per kind of pair: ``section`` (in a volume), ``points``, ``mixed`` (points and an image).

``preparation`` looks at pictures before they are compared, ``recipes`` say how the fit of a kind of pair differs from others'.
"""
