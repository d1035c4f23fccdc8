"""Figures and tables: everything that is drawn or worded from the results."""
