"""Image data sets from the user's own copies: read in their published layouts, decoded once into a cache.
Nothing is downloaded; a set that is absent is refused with what to put where.
"""

from supple.streams.data.sets import SETS, load, mean_and_deviation

__all__ = ["SETS", "load", "mean_and_deviation"]
