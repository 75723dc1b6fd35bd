"""Former home of `spcl_fast.segmentation.data`."""
