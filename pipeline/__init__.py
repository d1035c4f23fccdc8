"""Bakeoff: reproducible transfer-learning comparisons for image classification."""
