"""Raw prompts in, preference datasets and better policies out, in one resumable loop."""
