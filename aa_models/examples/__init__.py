"""Worked examples; each runs as `python -m aa_models.examples.<name>`."""
