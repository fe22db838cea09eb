"""The engine: everything that is minimised, and what is known of where it ended; no file and no plug-in by name.

``frames`` and ``halvings`` are what a fit looks at, ``velocity`` and ``prior`` what it may do, ``energy`` with ``mixture``
what it minimises, ``lbfgs`` how, ``pyramid`` in which order; ``likeness`` and ``uncertainty`` say what came of it.
"""
