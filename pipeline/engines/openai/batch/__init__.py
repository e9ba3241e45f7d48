"""Requests as batch jobs of a server: files of many requests, answered within a day at less."""
