"""How data, results and long work show themselves: ``notebook`` in a notebook's cell, ``bars`` while something runs,
``lines`` on pages."""
