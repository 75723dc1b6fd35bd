"""Stage 1: pre-train on meta-labels and on views of slices."""
