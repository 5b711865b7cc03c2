"""awq-bot: publishes measured AWQ INT4 versions of new models on the Hugging Face Hub."""

__version__ = "0.1.0"
