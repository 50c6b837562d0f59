"""Networks that draw: generators of pictures, and what is trained beside them."""
