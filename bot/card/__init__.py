"""The model card and the provenance: facts in, text out."""
