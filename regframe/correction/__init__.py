"""Corrections of a map by its user: through landmarks, over the whole canvas at once or in a region alone, helped by the images.

``landmarks`` bends a map through landmarks, smoothly, wherever they lie; ``images`` is a short fit that goes on from there;
``region`` is a part of the canvas with its seam, and ``here`` corrects a map in it and leaves it elsewhere as it was.
"""

from __future__ import annotations
