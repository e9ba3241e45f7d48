"""An engine over HTTP: any server that speaks OpenAI's API, whatever else it says."""
