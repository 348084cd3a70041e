"""Many trainings side by side: the paper's tables, over seeds, with what chance alone could have made of them."""
