"""What a trained network responds to."""
