"""Stage 2: train the segmenter on a few labelled scans."""
