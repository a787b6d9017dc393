"""rectune: turn an open language model into a recommender that answers Yes or No with a calibrated probability."""

__version__ = "0.1.0"
