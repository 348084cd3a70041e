"""The segmentation network F + C of the paper, its discriminator D, and the files their weights come from and go to."""
