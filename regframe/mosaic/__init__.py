"""Fields of view that overlap at their borders, as one mosaic.

``fields`` opens them and reads where they are said to lie, ``layout`` the files of other programs that say so; ``overlap`` finds
how two lie on each other, ``links`` which two; ``solve`` brings all pairs together and leaves out what contradicts the rest;
``align`` is `register_mosaic`; ``flat`` tells how evenly the fields are lit; ``mosaic`` is `Mosaic`, its folder and its slide.
"""
