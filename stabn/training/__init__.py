"""Training and fine-tuning with human knowledge."""
