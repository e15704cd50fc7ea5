"""Series from files, and what was found wrong in them."""
