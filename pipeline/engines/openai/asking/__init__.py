"""What a request to a server asks for, and what its answers come to."""
