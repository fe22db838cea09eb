"""Where a fit begins: poses found without landmarks, or given.

``given`` reads what the user says, with ``identity`` and ``landmarks``; ``images``, ``volumes``, ``section`` and ``points``
search; ``views`` is what the search of images looks at, ``scale`` what the units say of sizes, ``pose`` what a search of images
returns.
"""
