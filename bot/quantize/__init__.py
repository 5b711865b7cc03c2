"""Weights to integers: a source folder and calibration blocks in, a complete AWQ folder out (`artifact`)."""
