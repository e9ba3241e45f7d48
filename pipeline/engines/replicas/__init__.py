"""One engine in several processes on this machine, each on GPUs or cores of its own."""
