"""Corrections of a map by its user: through landmarks, over the whole canvas at once or in a region alone, helped by the images."""

from __future__ import annotations
