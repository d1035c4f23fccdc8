"""The families of classical classifiers, one module each."""
