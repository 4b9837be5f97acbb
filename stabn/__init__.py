"""ST-ABN: video recognition whose attention people can correct."""

__version__ = "0.1.0"
