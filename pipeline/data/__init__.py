"""Which images there are, which label each has, and which part of the split it belongs to."""
