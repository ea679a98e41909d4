"""A plan as a launcher, a job script or a manifest takes it."""
