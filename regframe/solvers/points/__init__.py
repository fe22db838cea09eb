"""Two point clouds, without a raster."""
