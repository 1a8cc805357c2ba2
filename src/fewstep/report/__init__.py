"""The report: one self-contained page of images, figures and lineage. Needs no torch."""
