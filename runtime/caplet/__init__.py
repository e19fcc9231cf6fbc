"""caplet: a sentence for a photo, on any CPU, offline."""

__version__ = "0.1.0"
