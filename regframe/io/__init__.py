"""Files of regframe's own: the ``store`` of a result, the folder of ``outputs`` of a run, ``tables`` of points, ``shapes``."""
