"""Networks that see: classifiers, a detector, video."""
