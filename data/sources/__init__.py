"""Rows out of files, folders and the hub, whatever the format, with what is wrong with each."""
