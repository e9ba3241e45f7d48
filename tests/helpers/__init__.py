"""What tests of several rooms are built with."""
