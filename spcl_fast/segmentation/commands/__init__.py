"""The commands of ``spcl-fast``, one file each; ``table`` lists them all."""
