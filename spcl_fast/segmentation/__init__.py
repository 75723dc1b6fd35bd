"""The segmentation job: pre-train on meta-labels, fine-tune on a few labelled scans, evaluate."""
