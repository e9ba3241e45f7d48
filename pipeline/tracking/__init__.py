"""How does a tracker hear of a run, without ever holding it up?"""
