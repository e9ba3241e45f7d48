"""How does a run get to the hub, and what must not go with it?"""
