"""The only room that knows transformers: what a name means, how a model is loaded, asked and saved."""
