"""What leaves the house: the model card and the provenance. Facts in, text out."""
