"""From files to batches of labelled slices.

=============== ============================================================
find            which scans a data set holds, in any of the ``layouts``
metadata_csv    further meta-labels from a table
inspect         what a data set holds and what is wrong with it
scan            one labelled volume, by its files
volume          reading the volume of a scan, writing labels
geometry        where voxels lie in millimetres, and whether mask and image agree
image_file      the formats: NIfTI, MetaImage (``metaimage``), HDF5
grid            resampling to a common in-plane grid, and back
slices          the slices of many scans as tensors, cached on disk
meta_labels     what comes free with a slice: position, patient, phase, ...
split           a random division into patients
protocol        published divisions, listed in ``protocols``
sampler         batches in which every anchor has positives
augment         random transforms of batches
=============== ============================================================
"""
