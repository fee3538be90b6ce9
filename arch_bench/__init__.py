"""arch-bench: accuracy, speed, memory and state of sequence architectures, at every length, from the same model."""
