"""The methods: what each makes of its inputs, and the trainer it hands to the session."""
