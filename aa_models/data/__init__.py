"""Pictures, names of classes, datasets that are known by name."""
