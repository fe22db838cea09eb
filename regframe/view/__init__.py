"""A page on this machine on which a pair is looked at, corrected and aligned again: ``regframe view``.

``source`` opens the two sides, ``recorded`` those of a saved result; ``display`` turns pixels into pictures; ``tiles``
makes the pieces of the pictures that the page asks for, and keeps the last ones, ``planes`` those of volumes;
``layers`` makes the maps that are laid over them, and the values under the pointer; ``drawn`` the points and outlines.
``pairs`` is the list of landmarks with its undo, and finds the pair that disagrees; ``pairfiles`` reads and writes
landmarks of other programs, ``regions`` outlines. ``bend`` corrects a map by landmarks at once or in a region, ``worker``
aligns anew in a process of its own, ``steps`` writes down what was done so that it can be repeated, ``session`` holds all
of it; ``gate`` lets nobody in but the user, ``server`` answers the page, whose files lie in ``static/``.
"""
