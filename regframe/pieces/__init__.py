"""Slides in pieces: sections beside each other, cores of a microarray, torn parts; each with a map of its own.

``find`` finds the pieces of tissue on a slide and the grid that cores lie on; ``match`` says in milliseconds how alike two of
them
are at any turn; ``pair`` decides which piece belongs to which; ``fit`` registers one on another with all else hidden; ``join``
makes one piecewise map of them; ``judge`` says what is known of each; ``align`` is `register_pieces`.
"""
