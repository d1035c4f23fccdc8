"""What a frozen network computes from images: the engine, stored activations, and the feature store."""
