"""The project's face: one self-contained page of pictures, figures and lineage. Needs no torch."""
