"""What a segmentation network is worth: scores against labels."""
