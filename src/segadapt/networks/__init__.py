"""The segmentation network of the paper (F and C), its discriminator D, and where their weights come from."""
