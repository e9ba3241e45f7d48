"""Label Studio as the place where people answer: tasks out, its JSON in."""
