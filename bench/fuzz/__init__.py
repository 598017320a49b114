"""Fuzz targets: run by hand, in a virtual environment of their own."""
