"""The proving ground: an endless, seeded population of pairs with known maps, made of real tissue only.

::

    python -m benchmarks.proving --n 400 --seed 7

`sources` reads the tissue, `maps` moves it, `looks` changes what it looks like, `cells` does both to tables of cells, `pairs`
puts pairs together, `judge` says which maps are right. A pair is a function of its kind and seed (and of the data that are
there). Constants are set on seeds below 10 000, checked on seeds above, and reported on the pairs with landmarks.
"""
