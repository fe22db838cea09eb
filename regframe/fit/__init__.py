"""The engine: everything that is minimised, and what is known of where it ended; no file, no modality, no plug-in by name.

``frames`` and ``halvings`` are what a fit looks at; ``velocity``, ``prior`` and ``mapspace`` the maps it chooses among;
``energy`` with ``mixture`` what it minimises; ``lbfgs`` and ``precondition`` how; ``pyramid`` in which order, as a solver's
`pyramid.Recipe` says; ``clouds`` and ``closed`` are the mixture and the closed forms of points; ``steps`` tells of progress,
``threads`` says how many are worth it; ``likeness`` and ``uncertainty`` say what came of it.
"""
