"""The version of rectune, below everything that keeps it with a file."""

__version__ = "0.1.0"
