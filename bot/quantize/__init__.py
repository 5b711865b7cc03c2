"""Quantizes a source folder on calibration blocks into a complete AWQ folder; `artifact` is the entry point."""
