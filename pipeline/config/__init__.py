"""All of params.yaml: checked as a whole, edited in place, and filled from recipes."""
