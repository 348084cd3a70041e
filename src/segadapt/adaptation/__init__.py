"""The method: one training step, the two-step procedure around it, and what they leave on disk."""
