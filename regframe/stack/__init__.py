"""Serial sections aligned into one stack.

``sections`` opens and sorts them; ``pairs`` says which neighbours are registered, ``each`` does so, a task for each pair, and
``settle`` improves it to a fraction of a pixel;
``posegraph`` finds the poses that agree best with all pairs; ``judge`` derives verdicts; ``align`` holds `align_stack` and
`Stack`. A "pose" is the rigid or affine map of a section into the space common to all.
"""
