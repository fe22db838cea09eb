"""Files of regframe's own: ``tables`` of points, ``shapes`` in GeoJSON."""
