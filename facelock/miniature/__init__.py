"""The miniature: a procedural portrait world with exact ground truth, and the training of the bundled models."""
