"""Training: pre-train the encoder on meta-labels, fine-tune on a few labelled scans, evaluate."""
