"""The solver of two point clouds, which works on the points themselves and draws no image."""
