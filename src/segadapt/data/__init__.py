"""From files of any supported data set to batches of images with labels in the train ids that are trained."""
