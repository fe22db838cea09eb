"""Where a fit begins: poses found without landmarks, or given.

``landmarks`` takes pairs; ``images``, ``volumes``, ``section`` and ``points`` search; ``views`` is what the search of images
looks at, ``pose`` what all of them return.
"""
