"""Finding, reading, resampling, sampling and augmenting labelled volumes.

``find`` finds the scans of a data set in one of the ``layouts``, ``metadata_csv`` adds meta-labels
from a table, ``scan`` reads volumes in the formats of ``image_file`` and writes labels, ``grid``
resamples them, ``slices`` holds them as tensors, ``meta_labels`` names what comes free with a
slice, ``sampler`` draws batches, ``split`` divides patients, ``augment`` transforms batches,
``inspect`` and ``thumbnails`` show a data set to its user.
"""
