"""Page retrieval: questions and pages in one space, by the two towers of a CLIP or SigLIP."""
