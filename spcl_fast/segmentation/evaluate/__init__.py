"""Scores of whole scans, predictions, and networks for other programs."""
