"""A finished run as a function from images to class probabilities."""
