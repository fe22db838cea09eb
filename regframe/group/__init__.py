"""Many images of one tissue in one space: rounds of one section, stains of one block.

``channels`` chooses the channel by which each image is aligned; ``members`` opens the images; ``pairs`` registers two of them,
and ``kept`` keeps finished pairs on the disk, so that a run that was killed goes on; ``volumes`` is what
volumes need of their own, ``agreed`` their poses; ``routes`` finds which pairs lead from an
image to the reference and reconciles them over loops; ``align`` is `register_group`; ``template`` is the mean of all images;
``judge`` derives figures and verdicts; ``lost`` maps the tissue that an image has lost; ``group`` is `Group` and its folder,
``together`` what it shares with a mosaic, ``folder`` the making of one that can be killed;
``merge`` writes one slide of all channels; ``nuclei`` says which nucleus is which.
"""
