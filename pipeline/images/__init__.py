"""Image files to arrays of pixels, and views of them by augmentation."""
