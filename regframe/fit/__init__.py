"""The engine: fits a map to two sides and states how sure it is. It knows no file, no modality and no plug-in by name.

The data: ``frames`` (normalised coordinates), ``halvings`` (one side at every resolution). The maps: ``velocity``, ``prior``,
``mapspace``. What is minimised: ``energy``, with weights by ``mixture``, and by a metric that ``measured`` has checked. How:
``lbfgs``, ``precondition``, in the order of ``pyramid``, which follows the solver's `pyramid.Recipe`, or ``warm`` (on from a map
that is nearly right); between two cuts ``fluid`` (a bend that follows in small steps); ``whole`` keeps a bend from tearing. For
points: ``clouds`` (the mixture) and ``closed`` (closed forms). Figures of a finished fit: ``likeness``, ``agreement`` with
``astray``, ``uncertainty``, and ``further`` (how far one that ran out of iterations would have gone). ``steps`` reports progress;
``threads`` bounds the number of threads.
"""
