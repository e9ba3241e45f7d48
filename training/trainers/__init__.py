"""TRL's trainers with what is ours in them: inputs that are tokens already, losses, order."""
