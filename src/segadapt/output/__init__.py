"""What people look at: pictures and tables made from finished runs."""
