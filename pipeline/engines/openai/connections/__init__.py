"""HTTP/1.1 to one server over connections that stay open: what costs little beside a request."""
