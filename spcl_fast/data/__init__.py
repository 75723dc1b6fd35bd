"""Reading, resampling, sampling and augmenting labelled short-axis volumes.

``scan`` reads and writes NIfTI volumes, ``acdc`` finds them on disk, ``grid`` resamples them,
``slices`` holds them as tensors, ``meta_labels`` names what comes free with a slice, ``sampler``
draws batches, ``split`` divides patients, ``augment`` transforms batches, ``inspect`` describes a
folder to its user.
"""
