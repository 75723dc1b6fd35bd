"""Run folders: configuration, device, optimiser, checkpoints, progress."""
