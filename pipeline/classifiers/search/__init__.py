"""Which candidates of a family are tried, and what every family takes and returns."""
