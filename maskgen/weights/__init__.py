"""Foreign weight files read without the code that wrote them."""
