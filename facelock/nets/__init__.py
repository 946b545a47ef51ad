"""Plain network architectures of ours, each with its source. No weights, no training, no file formats."""
